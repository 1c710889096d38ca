module github.com/shoalproject/shoal/test/bench

go 1.26.0

require (
	github.com/opencontainers/go-digest v1.0.0
	github.com/opencontainers/image-spec v1.1.1
	github.com/shoalproject/shoal v0.0.0
	go.uber.org/goleak v1.3.0
	golang.org/x/sync v0.24.0
	golang.org/x/sys v0.49.0
)

require (
	github.com/distribution/reference v0.6.0 // indirect
	golang.org/x/time v0.16.0 // indirect
)

replace github.com/shoalproject/shoal => ../..
