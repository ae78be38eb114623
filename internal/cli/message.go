package cli

import "fmt"

// Message is an error written for a person: a whole sentence, in stock's words
// where stock has some, printed as it is.
type Message string

func (m Message) Error() string { return string(m) }

// Failf makes a Message.
func Failf(format string, args ...any) error { return Message(fmt.Sprintf(format, args...)) }

// Because makes a Message of what was tried and of the reason that err gives.
func Because(what string, err error) error { return Failf("%s: %s", what, Reason(err)) }
