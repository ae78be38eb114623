package stage

import (
	"errors"
	"reflect"
	"testing"

	"golang.org/x/sys/unix"
)

// fill gives everything in v a value that is not zero.
func fill(v reflect.Value) {
	switch v.Kind() {
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int:
		v.SetInt(-7)
	case reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		v.SetUint(200)
	case reflect.String:
		v.SetString("text of " + v.Type().Name())
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		fill(v.Index(0))
		fill(v.Index(1))
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem())
	case reflect.Struct:
		for i := range v.NumField() {
			fill(v.Field(i))
		}
	default:
		panic(v.Type().String())
	}
}

func TestPlanCrossesTheChannel(t *testing.T) {
	ours, f, err := newChannel()
	if err != nil {
		t.Fatal(err)
	}
	defer ours.Close()
	theirs := &Channel{f}
	var want Plan
	fill(reflect.ValueOf(&want).Elem())
	if err := ours.Send(StepMapped, &want); err != nil {
		t.Fatal(err)
	}
	m, err := theirs.receive()
	if err != nil {
		t.Fatal(err)
	}
	if m.Step != StepMapped || m.Plan == nil || !reflect.DeepEqual(*m.Plan, want) {
		t.Errorf("got %+v, want %+v", m, want)
	}
	if err := theirs.Send(StepMounted, nil); err != nil {
		t.Fatal(err)
	}
	if err := ours.Wait(StepMounted); err != nil {
		t.Errorf("a step without a plan: %v", err)
	}
	if err := theirs.send(message{Step: stepError, Error: "no init", Code: 3}); err != nil {
		t.Fatal(err)
	}
	var e *Error
	if err := ours.Wait(StepReady); !errors.As(err, &e) || e.Message != "no init" || e.Code != 3 {
		t.Errorf("got %v, want the error of the other end", err)
	}
	if _, err := unix.Write(int(f.Fd()), []byte{3, 0, 0, 0, 'x', 'y', 'z'}); err != nil {
		t.Fatal(err)
	}
	if err := ours.Wait(StepReady); err == nil || errors.As(err, &e) {
		t.Errorf("a message that is none: got %v", err)
	}
	theirs.Close()
	if err := ours.Wait(StepReady); !errors.Is(err, ErrExecuted) {
		t.Errorf("a closed channel: got %v, want %v", err, ErrExecuted)
	}
}
