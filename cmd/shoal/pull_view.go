package main

import (
	"fmt"
	"io"
	"os"
	"sync"

	"github.com/dustin/go-humanize"
	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
	"golang.org/x/term"
)

// pullBars shows a bar for each blob on a terminal, and a line for each
// elsewhere.
type pullBars struct {
	out  io.Writer
	p    *mpb.Progress // nil where there is no terminal
	once sync.Once

	mu   sync.Mutex
	bars []*mpb.Bar // guarded by mu
}

func newPullBars(out io.Writer) *pullBars {
	b := &pullBars{out: out}
	if f, ok := out.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		b.p = mpb.New(mpb.WithOutput(f), mpb.WithWidth(terminalWidth(f)), mpb.WithAutoRefresh())
	}
	return b
}

// begin shows a blob that is to come. What it returns is told how many bytes
// are there, and at the end of none: then it is complete.
func (b *pullBars) begin(name string, size int64) func(bytes int64, done bool) {
	if b.p == nil {
		return func(_ int64, done bool) {
			if done {
				fmt.Fprintf(b.out, "%s  %s\n", name, humanize.IBytes(uint64(size)))
			}
		}
	}
	bar := b.p.AddBar(0,
		mpb.PrependDecorators(decor.Name(name, decor.WCSyncSpaceR), decor.Percentage(decor.WC{W: 6})),
		mpb.AppendDecorators(decor.CountersKibiByte("% .1f / % .1f", decor.WC{W: 22}), decor.AverageSpeed(decor.SizeB1024(0), "% .1f", decor.WC{W: 13})),
	)
	bar.SetTotal(max(size, 1), false)
	b.mu.Lock()
	b.bars = append(b.bars, bar)
	b.mu.Unlock()
	return func(bytes int64, done bool) {
		bar.SetCurrent(bytes)
		if done {
			bar.SetTotal(-1, true)
		}
	}
}

// close lets the terminal go.
func (b *pullBars) close() {
	b.once.Do(func() {
		if b.p == nil {
			return
		}
		b.mu.Lock()
		for _, bar := range b.bars {
			bar.Abort(false)
		}
		b.mu.Unlock()
		b.p.Wait()
	})
}
