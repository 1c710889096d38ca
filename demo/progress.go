package demo

import (
	"fmt"
	"io"
	"os"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/cwriter"
	"github.com/vbauerster/mpb/v8/decor"
)

// progress shows pulls as they go on. One goroutine calls its methods.
type progress interface {
	// update shows how things stand.
	update()
	// say says what happens.
	say(line string)
	// end shows how things ended.
	end()
}

// watch begins to show pulls, each of which will bring so many bytes.
func (s *scene) watch(pulls []*pulled, total int64) progress {
	if f, ok := s.out.(*os.File); ok && cwriter.IsTerminal(int(f.Fd())) && os.Getenv("TERM") != "dumb" {
		return newBars(f, pulls, total)
	}
	return &lines{out: s.out, pulls: pulls, total: total, began: time.Now()}
}

// bars are for terminals: a bar for each pull.
type bars struct {
	all   *mpb.Progress
	bars  []*mpb.Bar
	pulls []*pulled
	total int64
}

// What bars are made of can be told apart without colours too.
const fromOrigin, fromPeers, toCome = "█", "▓", "░"

// paint returns what colours text on a terminal, by a number of ECMA-48,
// unless the user wants none (no-color.org).
func paint(colour int) func(string) string {
	if os.Getenv("NO_COLOR") != "" {
		return func(s string) string { return s }
	}
	return func(s string) string { return fmt.Sprintf("\x1b[%dm%s\x1b[0m", colour, s) }
}

func newBars(out io.Writer, pulls []*pulled, total int64) *bars {
	yellow, green := paint(33), paint(32)
	fmt.Fprintf(out, "        %s from the origin  %s from peers\n", yellow(fromOrigin), green(fromPeers))
	b := &bars{pulls: pulls, total: total, all: mpb.New(mpb.WithOutput(out), mpb.WithRefreshRate(100*time.Millisecond))}
	style := mpb.BarStyle().Lbound("").Rbound("").
		Refiller(fromOrigin).RefillerMeta(yellow).
		Filler(fromPeers).FillerMeta(green).Tip(fromPeers).TipMeta(green).
		Padding(toCome)
	for _, p := range pulls {
		b.bars = append(b.bars, b.all.New(total, style,
			mpb.PrependDecorators(decor.Name(p.node.name, decor.WCSyncSpaceR)),
			mpb.AppendDecorators(
				decor.Percentage(decor.WC{W: 5}),
				decor.Any(func(decor.Statistics) string { return fmt.Sprintf("  %-15s", p.state()) }),
			)))
	}
	return b
}

func (b *bars) update() {
	for i, p := range b.pulls {
		got := p.got()
		// A bar that is full is not drawn again, and full is what is verified.
		b.bars[i].SetCurrent(min(got.Origin+got.Peers, b.total-1))
		b.bars[i].SetRefill(got.Origin)
	}
}

func (b *bars) say(line string) { fmt.Fprintln(b.all, line) }

func (b *bars) end() {
	b.update()
	for i, p := range b.pulls {
		if p.err == nil {
			b.bars[i].SetCurrent(b.total)
		} else {
			b.bars[i].Abort(false)
		}
	}
	b.all.Wait()
}

// lines are for files and pipes: a line for each quarter.
type lines struct {
	out   io.Writer
	pulls []*pulled
	total int64
	began time.Time
	said  int64 // quarters
}

func (l *lines) update() {
	sum, want := sumOf(l.pulls), int64(0)
	for _, p := range l.pulls {
		if p.node.killed.Load() {
			got := p.got()
			want += got.Origin + got.Peers
		} else {
			want += l.total
		}
	}
	if quarters := 4 * (sum.Origin + sum.Peers) / want; quarters > l.said && quarters <= 4 {
		l.said = quarters
		l.say(fmt.Sprintf("%3d %% after %s: %s from the origin, %s from peers",
			25*quarters, seconds(time.Since(l.began)), size(sum.Origin), size(sum.Peers)))
	}
}

func (l *lines) say(line string) { fmt.Fprintln(l.out, line) }

func (l *lines) end() { l.update() }
