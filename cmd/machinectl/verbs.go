package main

// The groups of verbs, as the help shows them.
const (
	groupMachines  = "Machine Commands"
	groupImages    = "Image Commands"
	groupTransfers = "Image Transfer Commands"
)

// verbs is the command table, in the order of the help.
var verbs []verb

func init() {
	verbs = []verb{
		{name: "help", short: "Show this help", max: -1, hidden: true, offline: true, run: runHelp},
		{name: "list", group: groupMachines, short: "List running VMs and containers", run: runList},
		{name: "status", group: groupMachines, usage: "NAME...", short: "Show VM/container details", min: 1, max: -1, run: runStatus},
		{name: "show", group: groupMachines, usage: "[NAME...]", short: "Show properties of one or more VMs/containers", max: -1, run: runShow},
		{name: "start", group: groupMachines, usage: "NAME...", short: "Start container as a service", min: 1, max: -1, changes: true, run: runStart},
		{name: "login", group: groupMachines, usage: "[NAME]", short: "Get a login prompt in a container or on the local host", max: 1, changes: true, localOnly: "Login only supported on local machines.", run: runLogin},
		{name: "shell", group: groupMachines, usage: "[[USER@]NAME [COMMAND...]]", short: "Invoke a shell (or other command) in a container or on the local host", max: -1, changes: true, localOnly: "Shell only supported on local machines.", run: runShell},
		{name: "exec", group: groupMachines, usage: "NAME COMMAND...", short: "Run a command in a container, with its streams and exit status", min: 2, max: -1, changes: true, localOnly: "Exec only supported on local machines.", run: runExec},
		{name: "enable", group: groupMachines, usage: "NAME...", short: "Enable automatic container start at boot", min: 1, max: -1, changes: true, run: runEnable},
		{name: "disable", group: groupMachines, usage: "NAME...", short: "Disable automatic container start at boot", min: 1, max: -1, changes: true, run: runDisable},
		{name: "poweroff", alias: "stop", group: groupMachines, usage: "NAME...", short: "Power off one or more containers", min: 1, max: -1, changes: true, run: runPoweroff},
		{name: "reboot", alias: "restart", group: groupMachines, usage: "NAME...", short: "Reboot one or more containers", min: 1, max: -1, changes: true, run: runReboot},
		{name: "pause", group: groupMachines, usage: "NAME...", short: "Pause one or more VMs", min: 1, max: -1, changes: true, run: runPause},
		{name: "resume", group: groupMachines, usage: "NAME...", short: "Resume one or more paused VMs", min: 1, max: -1, changes: true, run: runResume},
		{name: "terminate", group: groupMachines, usage: "NAME...", short: "Terminate one or more VMs/containers", min: 1, max: -1, changes: true, run: runTerminate},
		{name: "kill", group: groupMachines, usage: "NAME...", short: "Send signal to processes of a VM/container", min: 1, max: -1, changes: true, run: runKill},
		{name: "copy-to", group: groupMachines, usage: "NAME PATH [PATH]", short: "Copy files from the host to a container", min: 2, max: 3, changes: true, run: runCopyTo},
		{name: "copy-from", group: groupMachines, usage: "NAME PATH [PATH]", short: "Copy files from a container to the host", min: 2, max: 3, changes: true, run: runCopyFrom},
		{name: "bind", group: groupMachines, usage: "NAME PATH [PATH]", short: "Bind mount a path from the host into a container", min: 2, max: 3, changes: true, run: runBind},
		{name: "unbind", group: groupMachines, usage: "NAME PATH...", short: "Undo a bind mount made by bind", min: 2, max: -1, changes: true, run: runUnbind},
		{name: "bind-volume", group: groupMachines, usage: "NAME PROVIDER:VOLUME[:CONFIG[:KEY=VALUE,...]]", short: "Attach a volume of a storage provider to a running VM", min: 2, max: 2, changes: true, run: runBindVolume},
		{name: "unbind-volume", group: groupMachines, usage: "NAME PROVIDER:VOLUME", short: "Detach a volume from a running VM", min: 2, max: 2, changes: true, run: runUnbindVolume},
		{name: "list-binds", group: groupMachines, usage: "NAME", short: "List the bind mounts made by bind", min: 1, max: 1, run: runListBinds},

		{name: "list-images", group: groupImages, short: "Show available container and VM images", run: runListImages},
		{name: "image-status", group: groupImages, usage: "[NAME...]", short: "Show image details", max: -1, run: runImageStatus},
		{name: "show-image", group: groupImages, usage: "[NAME...]", short: "Show properties of image", max: -1, run: runShowImage},
		{name: "edit", group: groupImages, usage: "NAME|FILE...", short: "Edit settings of one or more VMs/containers", min: 1, max: -1, offline: true, run: runEdit},
		{name: "cat", group: groupImages, usage: "NAME|FILE...", short: "Show settings of one or more VMs/containers", min: 1, max: -1, offline: true, run: runCat},
		{name: "create", group: groupImages, usage: "NAME", short: "Make an image of a distribution (see --from=)", min: 1, max: 1, changes: true, run: runCreate},
		{name: "clone", group: groupImages, usage: "NAME NAME", short: "Clone an image", min: 2, max: 2, changes: true, run: runClone},
		{name: "snapshot", group: groupImages, usage: "NAME [SNAPSHOT]", short: "Keep the present state of an image", min: 1, max: 2, changes: true, run: runSnapshot},
		{name: "snapshots", group: groupImages, usage: "[NAME]", short: "List the states of images that were kept", max: 1, run: runSnapshots},
		{name: "rollback", group: groupImages, usage: "NAME [SNAPSHOT]", short: "Bring an image back to a state that was kept", min: 1, max: 2, changes: true, run: runRollback},
		{name: "prune", group: groupImages, usage: "NAME [SNAPSHOT...]", short: "Remove old snapshots of an image, or those named", min: 1, max: -1, changes: true, run: runPrune},
		{name: "flatten", group: groupImages, usage: "NAME...", short: "Make an image independent of those it shares files with", min: 1, max: -1, changes: true, run: runFlatten},
		{name: "rename", group: groupImages, usage: "NAME NAME", short: "Rename an image", min: 2, max: 2, changes: true, run: runRename},
		{name: "read-only", group: groupImages, usage: "NAME [BOOL]", short: "Mark or unmark image read-only", min: 1, max: 2, changes: true, run: runReadOnly},
		{name: "remove", group: groupImages, usage: "NAME...", short: "Remove an image", min: 1, max: -1, changes: true, run: runRemove},
		{name: "set-limit", group: groupImages, usage: "[NAME] BYTES", short: "Set image or pool size limit (disk quota)", min: 1, max: 2, changes: true, run: runSetLimit},
		{name: "clean", group: groupImages, short: "Remove hidden (or all) images", changes: true, run: runClean},

		{name: "pull-tar", group: groupTransfers, usage: "URL [NAME]", short: "Download a TAR container image", max: -1, offline: true, run: transferVerb("pull-tar")},
		{name: "pull-raw", group: groupTransfers, usage: "URL [NAME]", short: "Download a RAW container or VM image", max: -1, offline: true, run: transferVerb("pull-raw")},
		{name: "pull-oci", group: groupTransfers, usage: "REF [NAME]", short: "Download an OCI container image", max: -1, offline: true, run: transferVerb("pull-oci")},
		{name: "import-tar", group: groupTransfers, usage: "FILE [NAME]", short: "Import a local TAR container image", max: -1, offline: true, run: transferVerb("import-tar")},
		{name: "import-raw", group: groupTransfers, usage: "FILE [NAME]", short: "Import a local RAW container or VM image", max: -1, offline: true, run: transferVerb("import-raw")},
		{name: "import-fs", group: groupTransfers, usage: "DIRECTORY [NAME]", short: "Import a local directory container image", max: -1, offline: true, run: transferVerb("import-fs")},
		{name: "export-tar", group: groupTransfers, usage: "NAME [FILE]", short: "Export a TAR container image locally", max: -1, offline: true, run: transferVerb("export-tar")},
		{name: "export-raw", group: groupTransfers, usage: "NAME [FILE]", short: "Export a RAW container or VM image locally", max: -1, offline: true, run: transferVerb("export-raw")},
		{name: "export-oci", group: groupTransfers, usage: "NAME [PATH]", short: "Export a container image as an OCI image", max: -1, offline: true, run: transferVerb("export-oci")},
		{name: "list-transfers", group: groupTransfers, short: "Show list of transfers in progress", max: -1, offline: true, run: transferVerb("list-transfers")},
		{name: "cancel-transfer", group: groupTransfers, usage: "ID...", short: "Cancel a transfer", max: -1, offline: true, run: transferVerb("cancel-transfer")},
	}
}
