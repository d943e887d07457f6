package archive

import (
	"encoding/json"
	"fmt"
	"regexp"
	"strings"

	"github.com/opencontainers/go-digest"

	"imgcrypt"
)

// Files of a docker-archive that list its images: the one that counts, and the one for
// Docker before 1.10, which others still look at.
const (
	dockerManifestFile     = "manifest.json"
	dockerRepositoriesFile = "repositories"
)

// maxDockerImages bounds how many images are listed there.
const maxDockerImages = 10000

// dockerImage is an image as manifest.json lists it.
type dockerImage struct {
	// Config and Layers are names of files.
	Config   string
	RepoTags []string
	Layers   []string
}

// parseDocker parses a manifest.json.
func parseDocker(text []byte) ([]dockerImage, error) {
	var images []dockerImage
	if err := json.Unmarshal(text, &images); err != nil {
		return nil, fmt.Errorf("%w: %s: %w", imgcrypt.ErrManifest, dockerManifestFile, err)
	}
	if len(images) > maxDockerImages {
		return nil, fmt.Errorf("%w: %s lists %d images, at most %d are read", imgcrypt.ErrManifest, dockerManifestFile, len(images), maxDockerImages)
	}
	return images, nil
}

// diffIDs returns the digests of the uncompressed layers that an image config names.
func diffIDs(config []byte) ([]digest.Digest, error) {
	var image struct {
		RootFS struct {
			DiffIDs []digest.Digest `json:"diff_ids"`
		} `json:"rootfs"`
	}
	if err := json.Unmarshal(config, &image); err != nil {
		return nil, fmt.Errorf("%w: config: %w", imgcrypt.ErrManifest, err)
	}
	return image.RootFS.DiffIDs, nil
}

// dockerName is the grammar of an image's name for Docker: an optional host, a path of
// lower-case words, and an optional tag.
var dockerName = regexp.MustCompile(`^((?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9a-fA-F:]+\])(?::[0-9]+)?/)?` +
	`([a-z0-9]+(?:(?:\.|__?|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|__?|-+)[a-z0-9]+)*)*)` +
	`(?::([A-Za-z0-9_][A-Za-z0-9_.-]{0,127}))?$`)

const maxDockerName = 255 + 1 + 128

// parseDockerName splits a name into repository and tag, which is latest if there is
// none.
func parseDockerName(name string) (repository, tag string, err error) {
	m := dockerName.FindStringSubmatch(name)
	if m == nil || len(name) > maxDockerName {
		return "", "", fmt.Errorf("the name %.100q is not one of an image for Docker, like example.test/app:v1", name)
	}
	if tag = m[3]; tag == "" {
		tag = "latest"
	}
	return m[1] + m[2], tag, nil
}

// fullDockerName returns the one form of a name that Docker writes and understands in
// several, and any other text as it is.
func fullDockerName(name string) string {
	repository, tag, err := parseDockerName(name)
	if err != nil {
		return name
	}
	host, rest, ok := strings.Cut(repository, "/")
	if !ok || !strings.ContainsAny(host, ".:[") && host != "localhost" && strings.ToLower(host) == host {
		host, rest = "docker.io", repository
	}
	if host == "index.docker.io" {
		host = "docker.io"
	}
	if host == "docker.io" && !strings.Contains(rest, "/") {
		rest = "library/" + rest
	}
	return host + "/" + rest + ":" + tag
}
