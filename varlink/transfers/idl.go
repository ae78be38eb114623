package transfers

const importIDL = `# Transfers of machine images, portable services and system extensions.
interface io.systemd.Import

# The class of an image.
type ImageClass(
	machine,
	portable,
	sysext,
	confext
)

# What kind of image a pull gets.
type RemoteType(
	raw,
	tar,
	oci
)

# What a transfer does.
type TransferType(
	import_tar,
	import_raw,
	import_fs,
	export_tar,
	export_raw,
	pull_tar,
	pull_raw,
	pull_oci
)

# What a pulled file is checked against.
type ImageVerify(
	no,
	checksum,
	signature
)

# A line that a transfer writes, with its priority (0 to 7).
type LogMessage(
	message: string,
	priority: int
)

# Lists the running transfers, one per reply.
method ListTransfers(
	class: ?ImageClass
) -> (
	id: int,
	type: TransferType,
	remote: string,
	local: ?string,
	class: ImageClass,
	percent: ?float
)

# Pulls an image. The first reply has the id; with "more" others follow until
# the transfer is over.
method Pull(
	remote: string,
	type: RemoteType,
	class: ImageClass,
	local: ?string,
	verify: ?ImageVerify,
	force: ?bool,
	readOnly: ?bool,
	keepDownload: ?bool,
	imageRoot: ?string,
	allowInteractiveAuthentication: ?bool
) -> (
	id: ?int,
	progress: ?float,
	log: ?LogMessage
)

# The same file is being pulled already.
error AlreadyInProgress(
	remote: string
)

# The transfer was cancelled.
error TransferCancelled()

# The transfer failed.
error TransferFailed()

# No transfer runs.
error NoTransfers()
`
