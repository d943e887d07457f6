package archive

// dockerManifestFile is the file that lists the images of a docker-archive.
const dockerManifestFile = "manifest.json"
