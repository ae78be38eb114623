package main

import (
	"fmt"

	"machined/internal/cli"
)

func showHelp(t *cli.Transfers) error {
	out := cli.OpenOutput(t.Terminal, t.NoPager)
	fmt.Fprintf(out, "importctl [OPTIONS...] COMMAND ...\n\n%s\n\n%s\n%s\n%s\n%s\nSee the importctl(1) man page for details.\n",
		t.Terminal.Paint(cli.StyleBold, "Download, import or export disk images"),
		t.Terminal.Paint(cli.StyleUnderline, "Commands:"), commandsHelp,
		t.Terminal.Paint(cli.StyleUnderline, "Options:"), optionsHelp)
	return out.Close()
}

const commandsHelp = `  pull-tar URL [NAME]         Download a TAR container image
  pull-raw URL [NAME]         Download a RAW container or VM image
  pull-oci REF [NAME]         Download an OCI container image
  import-tar FILE [NAME]      Import a local TAR container image
  import-raw FILE [NAME]      Import a local RAW container or VM image
  import-fs DIRECTORY [NAME]  Import a local directory container image
  export-tar NAME [FILE]      Export a TAR container image locally
  export-raw NAME [FILE]      Export a RAW container or VM image locally
  export-oci NAME [PATH]      Export a container image as an OCI image
  list-transfers              Show list of transfers in progress
  cancel-transfer ID...       Cancel a transfer
  list-images                 Show list of installed images
`

const optionsHelp = `  -h --help                   Show this help
     --version                Show package version
     --no-pager               Do not pipe output into a pager
     --no-legend              Do not show the headers and footers
     --no-ask-password        Do not ask for system passwords
  -H --host=[USER@]HOST       Operate on remote host
  -M --machine=CONTAINER      Operate on local container
     --user                   Connect to the user's own import service
     --system                 Connect to the system's import service
     --read-only              Create read-only image
  -q --quiet                  Suppress output
     --json=pretty|short|off  Generate JSON output
  -j                          Equivalent to --json=pretty on TTY, --json=short
                              otherwise
     --verify=MODE            Verification mode for downloaded images (no,
                              checksum, signature)
     --format=xz|gzip|bzip2|zstd
                              Desired output format for export
     --force                  Install image even if already exists
     --class=TYPE             Install as the specified TYPE
  -m                          Install as --class=machine, machine image
  -P                          Install as --class=portable,
                              portable service image
  -S                          Install as --class=sysext, system extension image
  -C                          Install as --class=confext,
                              configuration extension image
     --keep-download=BOOL     Control whether to keep pristine copy of download
  -N                          Same as --keep-download=no
`
