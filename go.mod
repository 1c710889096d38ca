module github.com/shoalproject/shoal

go 1.26

require (
	github.com/zeebo/blake3 v0.2.4
	pgregory.net/rapid v1.3.0
)

require github.com/klauspost/cpuid/v2 v2.0.12 // indirect
