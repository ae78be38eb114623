package registry

// facts is all that decides about the life of a machine.
type facts struct {
	host        bool
	leaderKnown bool
	leaderAlive bool // a zombie is dead
	jobPending  bool // the scope is still being made
	stopping    bool // we have begun to end it
	ownsUnit    bool // nothing but the machine lives in its unit
	unitActive  bool // neither inactive nor failed
}

// stateOf computes the state that a client sees.
func stateOf(f facts) State {
	switch {
	case f.host:
		return StateRunning
	case f.stopping:
		return StateClosing
	case f.jobPending:
		return StateOpening
	default:
		return StateRunning
	}
}

// collectable reports whether a machine is over and is to be forgotten.
func collectable(f facts) bool {
	switch {
	case f.host:
		return false
	case !f.leaderKnown:
		return true
	case f.leaderAlive, f.jobPending:
		return false
	default:
		return !f.ownsUnit || !f.unitActive
	}
}
