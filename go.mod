module github.com/shoalproject/shoal

go 1.26

require (
	github.com/distribution/reference v0.6.0
	github.com/opencontainers/go-digest v1.0.0
	github.com/opencontainers/image-spec v1.1.1
	github.com/zeebo/blake3 v0.2.4
	pgregory.net/rapid v1.3.0
)

require github.com/klauspost/cpuid/v2 v2.0.12 // indirect
