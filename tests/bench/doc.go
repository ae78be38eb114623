// Package bench compares the product's speed and memory with stock's, in one
// booted test host (tests/host), with the tag "integration". Each benchmark
// runs stock and ours by turns, so that a slow moment of the machine falls on
// both, and prints the ratio beside the target.
//
// Times of whole programs include nsenter's, which is the same for both.
package bench
