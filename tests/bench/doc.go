// Package bench measures the product beside stock in the same booted host,
// built with the tag "integration": `make bench`.
package bench
