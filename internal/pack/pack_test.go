package pack

import (
	"errors"
	"math"
	"reflect"
	"testing"
)

type leaf struct {
	Name string
	ID   uint32
}

type all struct {
	On      bool
	Signed  int
	Small   int8
	Big     int64
	Count   uint64
	Port    uint16
	Text    string
	Raw     []byte
	Filters [][]byte
	Words   []string
	Leaves  []leaf
	Nested  leaf
	Maybe   *leaf
	Score   *int
	Never   *leaf
	None    []string
}

func full() all {
	score := -1000
	return all{
		On: true, Signed: math.MinInt64, Small: -128, Big: math.MaxInt64, Count: math.MaxUint64, Port: 65535,
		Text: "a\x00\xff\n", Raw: []byte{0, 255}, Filters: [][]byte{{1, 2}, nil, {3}}, Words: []string{"", "x"},
		Leaves: []leaf{{"root", 0}, {"", math.MaxUint32}}, Nested: leaf{"n", 1}, Maybe: &leaf{"p", 2}, Score: &score,
	}
}

func TestRoundTrip(t *testing.T) {
	for name, want := range map[string]all{"zero": {}, "full": full()} {
		t.Run(name, func(t *testing.T) {
			var got all
			if err := Unmarshal(Marshal(want), &got); err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(got, want) {
				t.Errorf("got %+v, want %+v", got, want)
			}
		})
	}
	var empty all
	if err := Unmarshal(Marshal(all{None: []string{}, Raw: []byte{}}), &empty); err != nil || empty.None != nil || empty.Raw != nil {
		t.Errorf("empty slices: got %+v (%v), want nil", empty, err)
	}
}

func TestInvalid(t *testing.T) {
	data := Marshal(full())
	for n := range data {
		if err := Unmarshal(data[:n], &all{}); !errors.Is(err, ErrInvalid) {
			t.Fatalf("first %d of %d bytes: %v", n, len(data), err)
		}
	}
	if err := Unmarshal(append(data, 0), &all{}); !errors.Is(err, ErrInvalid) {
		t.Errorf("a byte more: %v", err)
	}
	for name, c := range map[string]struct {
		data []byte
		into any
	}{
		"2 as boolean":         {[]byte{2}, new(bool)},
		"too large":            {Marshal(uint64(256)), new(uint8)},
		"too small":            {Marshal(int64(-129)), new(int8)},
		"number without end":   {[]byte{255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 1}, new(uint64)},
		"more than there is":   {[]byte{200, 1, 0}, new([]string)},
		"longer than any data": {Marshal(uint64(math.MaxUint64)), new(string)},
	} {
		if err := Unmarshal(c.data, c.into); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestOtherTypes(t *testing.T) {
	for _, v := range []any{map[string]int{}, 1.5, struct{ F func() }{}} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%T was packed", v)
				}
			}()
			Marshal(v)
		}()
	}
}

func FuzzUnmarshal(f *testing.F) {
	f.Add(Marshal(full()))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		var first, second all
		if Unmarshal(data, &first) != nil {
			return
		}
		if err := Unmarshal(Marshal(first), &second); err != nil || !reflect.DeepEqual(first, second) {
			t.Errorf("got %+v (%v), want %+v", second, err, first)
		}
	})
}
