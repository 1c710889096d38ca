module github.com/shoalproject/shoal/test/attack

go 1.26.0

require github.com/shoalproject/shoal v0.0.0

require (
	github.com/distribution/reference v0.6.0 // indirect
	github.com/opencontainers/go-digest v1.0.0 // indirect
	github.com/opencontainers/image-spec v1.1.1 // indirect
	golang.org/x/time v0.16.0 // indirect
)

replace github.com/shoalproject/shoal => ../..
