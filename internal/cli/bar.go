package cli

import (
	"io"
	"os"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
)

// Bar is a progress bar on the terminal at standard error. Lines can be
// printed above it. Use it from one goroutine.
type Bar struct {
	progress *mpb.Progress
	bar      *mpb.Bar
}

// barSteps is how finely the bar moves: hundredths of a percent. The bar has one
// step more, which it never takes: a full bar would stay on the terminal.
const barSteps = 10000

// NewBar draws an empty bar behind label. tail gives the text behind it for the
// share that is done.
func NewBar(label string, tail func(fraction float64) string) *Bar {
	b := &Bar{progress: mpb.New(mpb.WithOutput(os.Stderr), mpb.WithWidth(40))}
	b.bar = b.progress.New(barSteps+1, mpb.BarStyle().Lbound("[").Filler("━").Tip("━").Padding(" ").Rbound("]"),
		mpb.PrependDecorators(decor.Name(label), decor.Percentage(decor.WC{W: 5})),
		mpb.AppendDecorators(
			decor.Any(func(s decor.Statistics) string { return tail(float64(s.Current) / barSteps) }),
			decor.AverageETA(decor.ET_STYLE_GO, decor.WC{W: 8}), decor.Name(" left")))
	return b
}

// Set moves the bar to a share between 0 and 1.
func (b *Bar) Set(fraction float64) {
	b.bar.SetCurrent(int64(min(max(fraction, 0), 1) * barSteps))
}

// Print writes a line above the bar; false means that the bar is gone and the
// line was not written.
func (b *Bar) Print(line string) bool {
	_, err := io.WriteString(b.progress, line+"\n")
	return err == nil
}

// Close takes the bar off the terminal.
func (b *Bar) Close() {
	b.bar.Abort(true)
	b.progress.Wait()
}
