// Command cgoresolve looks names up as Go programs with cgo do: by the C
// library, and so by its name service modules. It prints all addresses of its
// argument, or the names of an address.
package main

/*
#include <netdb.h>
*/
import "C"

import (
	"fmt"
	"net"
	"os"
	"strings"
)

func main() {
	look := net.LookupHost
	if net.ParseIP(os.Args[1]) != nil {
		look = net.LookupAddr
	}
	found, err := look(os.Args[1])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(strings.Join(found, "\n"))
}
