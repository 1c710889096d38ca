package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
	"golang.org/x/term"

	"github.com/shoalproject/shoal/scheduler/jobs"
)

// view shows a job to a person or a program.
type view interface {
	show(job jobs.Job)
	say(text string)
	// end shows how the job ended, after the last show.
	end(job jobs.Job)
	// close lets the terminal go. It may be called twice.
	close()
}

// event is a line of --output json.
type event struct {
	Event string   `json:"event"` // begun, progress or end
	Job   jobs.Job `json:"job"`
}

func newView(out, err io.Writer, asJSON bool, job jobs.Job) view {
	if asJSON {
		return &events{out: json.NewEncoder(out), err: err}
	}
	fmt.Fprintf(err, "Job %s: %s onto %s\n", job.ID, plural(len(job.Images), "image"), plural(job.Counts.Nodes, "node"))
	if f, ok := err.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		return newBars(out, f, job)
	}
	return &lines{out: out, started: time.Now()}
}

// terminalWidth returns the columns of a terminal, 80 if it does not say.
func terminalWidth(f *os.File) int {
	if width, _, err := term.GetSize(int(f.Fd())); err == nil && width > 20 {
		return width
	}
	return 80
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// events writes each change as JSON.
type events struct {
	out *json.Encoder
	err io.Writer
}

func (e *events) show(job jobs.Job) {
	// An error means that nobody reads; the job goes on all the same.
	_ = e.out.Encode(event{"progress", job})
}
func (e *events) say(text string)  { fmt.Fprintln(e.err, "shoal preheat: "+text) }
func (e *events) end(job jobs.Job) { _ = e.out.Encode(event{"end", job}) }
func (e *events) close()           {}

// part is how far one image, or all of them, is over all nodes.
type part struct {
	bytes, size int64
	done, nodes int
}

// parts returns that of each image, and of all together last.
func parts(job jobs.Job) []part {
	list := make([]part, len(job.Images)+1)
	all := &list[len(job.Images)]
	for _, n := range job.Nodes {
		for k, img := range n.Images {
			p := &list[k]
			p.bytes += img.Bytes
			p.size += img.Size
			p.nodes++
			if img.State == jobs.Done {
				p.done++
			}
		}
	}
	all.bytes, all.size, all.nodes, all.done = job.Counts.Bytes, job.Counts.Size, job.Counts.Nodes, job.Counts.Done
	return list
}

// speed is a rate that follows changes within seconds.
type speed struct {
	bytes int64
	at    time.Time
	rate  float64
}

func (s *speed) add(bytes int64, now time.Time) {
	if s.at.IsZero() {
		s.bytes, s.at = bytes, now
		return
	}
	d := now.Sub(s.at).Seconds()
	if d < 0.2 {
		return
	}
	current := float64(max(bytes-s.bytes, 0)) / d
	weight := min(d/3, 1)
	s.rate += weight * (current - s.rate)
	s.bytes, s.at = bytes, now
}

// left says how much time the rest takes.
func (s *speed) left(p part) string {
	if s.rate < 1 || p.bytes >= p.size {
		return ""
	}
	seconds := float64(p.size-p.bytes) / s.rate
	if seconds > 99*3600 {
		return ""
	}
	return (time.Duration(seconds+1) * time.Second).String()
}

func (s *speed) String() string {
	if s.rate < 1 {
		return ""
	}
	return strings.ReplaceAll(humanize.IBytes(uint64(s.rate)), " ", "") + "/s"
}

// bars draws a bar for each image and one for all.
type bars struct {
	out    io.Writer
	err    *os.File
	p      *mpb.Progress
	rows   []*row
	closed bool
}

// row is a bar. Its texts are read while it is drawn.
type row struct {
	bar   *mpb.Bar
	speed speed
	nodes atomic.Pointer[string]
	rate  atomic.Pointer[string]
	left  atomic.Pointer[string]
}

func newBars(out io.Writer, err *os.File, job jobs.Job) *bars {
	width := terminalWidth(err)
	b := &bars{out: out, err: err, p: mpb.New(mpb.WithOutput(err), mpb.WithWidth(width), mpb.WithAutoRefresh())}
	names := make([]string, 0, len(job.Images)+1)
	for _, img := range job.Images {
		names = append(names, img.Name)
	}
	names = append(names, "total")
	// Beside the name: 6 columns of percent, 11 of the rate, 8 of the time
	// left, 13 of the nodes, and a bar of at least 12.
	room := max(min(width-54, 40), 12)
	for i, name := range names {
		if i == len(names)-1 && len(names) == 2 {
			break // the one image is all
		}
		r := &row{}
		// 0 says that the total is to come.
		r.bar = b.p.AddBar(0,
			mpb.PrependDecorators(decor.Name(fmt.Sprintf("%-*s", min(room, longest(names)), shorten(name, room))), decor.Percentage(decor.WC{W: 6})),
			mpb.AppendDecorators(text(&r.rate, 11), text(&r.left, 8), text(&r.nodes, 13)),
		)
		b.rows = append(b.rows, r)
	}
	return b
}

func longest(names []string) (n int) {
	for _, name := range names {
		n = max(n, len(name))
	}
	return n
}

// shorten leaves the end of a name, which tells images apart.
func shorten(name string, room int) string {
	if len(name) <= room {
		return name
	}
	return "…" + name[len(name)-room+1:]
}

func text(s *atomic.Pointer[string], width int) decor.Decorator {
	return decor.Any(func(decor.Statistics) string {
		if v := s.Load(); v != nil {
			return *v
		}
		return ""
	}, decor.WC{W: width})
}

func (b *bars) show(job jobs.Job) {
	now := time.Now()
	for i, p := range parts(job) {
		if i >= len(b.rows) {
			break
		}
		r := b.rows[i]
		r.speed.add(p.bytes, now)
		rate, left, nodes := r.speed.String(), r.speed.left(p), fmt.Sprintf("%d/%d nodes", p.done, p.nodes)
		if i < len(job.Images) {
			switch st := job.Images[i].State; {
			case st == jobs.Failed:
				nodes = "failed"
			case !st.Final():
				nodes = "resolving"
			}
		}
		if p.done == p.nodes {
			rate, left = "", ""
		}
		r.rate.Store(&rate)
		r.left.Store(&left)
		r.nodes.Store(&nodes)
		// A total that is reached would end the bar: that is end's to say.
		r.bar.SetTotal(max(p.size, 1)+1, false)
		r.bar.SetCurrent(p.bytes)
	}
}

func (b *bars) say(text string) {
	// An error means that the terminal is gone.
	_, _ = fmt.Fprintln(b.p, text)
}

func (b *bars) end(job jobs.Job) {
	for i, p := range parts(job) {
		if i >= len(b.rows) {
			break
		}
		if p.done == p.nodes {
			b.rows[i].bar.SetTotal(-1, true)
			continue
		}
		b.rows[i].bar.Abort(false)
	}
	b.close()
	summary(b.out, job)
}

func (b *bars) close() {
	if b.closed {
		return
	}
	b.closed = true
	for _, r := range b.rows {
		r.bar.Abort(false)
	}
	b.p.Wait()
}

// lines writes a line now and then, and at once when a node is done.
type lines struct {
	out     io.Writer
	started time.Time
	last    time.Time
	done    int
	speed   speed
}

func (l *lines) show(job jobs.Job) {
	now := time.Now()
	list := parts(job)
	all := list[len(list)-1]
	l.speed.add(all.bytes, now)
	if now.Sub(l.last) < 5*time.Second && all.done == l.done && !l.last.IsZero() {
		return
	}
	l.last, l.done = now, all.done
	percent := 0
	if all.size > 0 {
		percent = int(100 * all.bytes / all.size)
	}
	text := fmt.Sprintf("%4ds  %d of %d nodes done, %d%% of %s", int(now.Sub(l.started).Seconds()), all.done, all.nodes, percent, humanize.IBytes(uint64(all.size)))
	if rate := l.speed.String(); rate != "" && !job.Ended() {
		text += ", " + rate
		if left := l.speed.left(all); left != "" {
			text += ", " + left + " left"
		}
	}
	fmt.Fprintln(l.out, text)
}

func (l *lines) say(text string)  { fmt.Fprintln(l.out, text) }
func (l *lines) end(job jobs.Job) { summary(l.out, job) }
func (l *lines) close()           {}

// maxNamed bounds the nodes that are named at the end, of each reason.
const maxNamed = 50

// summary says what became of a job, with each node that is not done.
func summary(out io.Writer, job jobs.Job) {
	took := job.Updated.Sub(job.Created).Round(100 * time.Millisecond)
	fmt.Fprintf(out, "%d of %s done, %s in %s\n", job.Counts.Done, plural(job.Counts.Nodes, "node"), humanize.IBytes(uint64(job.Counts.Bytes)), took)
	names := map[string][]string{} // by what became of them
	var fates []string
	for _, n := range job.Nodes {
		if n.State == jobs.Done {
			continue
		}
		fate := string(n.State) + ": " + n.Reason
		if names[fate] == nil {
			fates = append(fates, fate)
		}
		names[fate] = append(names[fate], n.Name)
	}
	for _, fate := range fates {
		list := names[fate]
		slices.Sort(list)
		text := strings.Join(list[:min(len(list), maxNamed)], ", ")
		if len(list) > maxNamed {
			text += fmt.Sprintf(" and %d more, which --output json names", len(list)-maxNamed)
		}
		fmt.Fprintf(out, "%s: %s\n", text, fate)
	}
}
