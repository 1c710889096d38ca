// Package api is the scheduler's HTTP API: preheat jobs, and what the cluster
// is doing. openapi.yaml describes it, and a test holds the one against the
// other.
//
// It knows HTTP, who may use the API, and how often. What a job is, package
// jobs knows.
package api
