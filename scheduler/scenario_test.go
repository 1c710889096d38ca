package scheduler

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/shoalproject/shoal/piece"
)

var rewrite = flag.Bool("rewrite", false, "rewrite the scenarios' output")

// Each file of testdata is a scenario: commands at the margin, what the core
// answers indented below each. See scenario.run for the commands.
func TestScenarios(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scenarios: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			got := play(t, string(text))
			if *rewrite {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if got != string(text) {
				t.Errorf("%s: the core answers otherwise; see the difference after -rewrite. Now:\n%s", file, got)
			}
		})
	}
}

type scenario struct {
	core *Core
	now  time.Duration
	out  strings.Builder
}

func play(t *testing.T, text string) string {
	s := &scenario{core: New(DefaultConfig())}
	for _, line := range strings.Split(strings.TrimSuffix(text, "\n"), "\n") {
		if strings.HasPrefix(line, "    ") {
			continue
		}
		fmt.Fprintln(&s.out, line)
		if words := strings.Fields(line); len(words) > 0 && words[0] != "#" {
			if err := s.run(words); err != nil {
				t.Fatalf("%s: %v", line, err)
			}
			if err := check(s.core); err != nil {
				t.Errorf("after %q: %v", line, err)
			}
		}
	}
	return s.out.String()
}

// run performs one command:
//
//	hello PEER ZONE [id=IDENTITY | cert=IDENTITY] [BLOB=SIZE …]
//	join PEER BLOB SIZE [origin] [again] [have=RUNS] [bringing=RUNS] [source=NAME]
//	have PEER BLOB RUNS        complete PEER BLOB SIZE    sized PEER BLOB SIZE
//	giveback PEER BLOB RUN REASON [AFTER]
//	leave PEER BLOB            bye PEER                   report PEER BLOB OTHER REASON
//	missing PEER BLOB RUNS     wait DURATION              restart
//	state BLOB
//
// A size is a number of pieces of 256 KiB, runs are first-last,first-last.
func (s *scenario) run(w []string) error {
	arg := func(i int) string {
		if i < len(w) {
			return w[i]
		}
		return ""
	}
	p, b := PeerID(arg(1)), Digest(arg(2))
	var in In
	switch w[0] {
	case "wait":
		d, err := time.ParseDuration(arg(1))
		if err != nil {
			return err
		}
		for end := s.now + d; s.now < end; {
			s.now += min(200*time.Millisecond, end-s.now)
			if out := s.core.Tick(s.now); len(out) > 0 {
				fmt.Fprintf(&s.out, "    at %v\n", s.now)
				s.print(out)
			}
		}
		return nil
	case "restart":
		s.core = New(DefaultConfig())
		return nil
	case "state":
		for _, sw := range s.core.blobs[Digest(arg(1))] {
			fmt.Fprintf(&s.out, "    %d members, %d want, %d seeds\n", sw.members, sw.wanters, sw.seeds)
			for _, r := range sw.rings {
				fmt.Fprintf(&s.out, "    %s: %s\n", r.zone, describe(r))
			}
		}
		return nil
	case "hello":
		h := Hello{Addr: string(p) + ":4401", Zone: arg(2)}
		for _, kv := range w[min(3, len(w)):] {
			blob, n, _ := strings.Cut(kv, "=")
			if blob == "id" || blob == "cert" {
				h.Identity, h.Proven = n, blob == "cert"
				continue
			}
			h.Inventory = append(h.Inventory, Holding{Digest(blob), size(n)})
		}
		in = h
	case "join":
		j := Join{Blob: b, Size: size(arg(3)), Source: "src"}
		for _, o := range w[4:] {
			key, v, _ := strings.Cut(o, "=")
			switch key {
			case "origin":
				j.Origin = true
			case "again":
				j.Again = true
			case "source":
				j.Source = v
			case "bringing":
				j.Bringing = runs(v)
			case "have":
				j.Have = make([]byte, piece.NewLayout(j.Size).Count()/8+1)
				for _, r := range runs(v) {
					for i := r.First; i < r.End(); i++ {
						j.Have[i/8] |= 0x80 >> (i % 8)
					}
				}
			default:
				return fmt.Errorf("unknown option %q", o)
			}
		}
		in = j
	case "have":
		in = Have{Blob: b, Runs: runs(arg(3))}
	case "complete":
		in = Complete{Blob: b, Size: size(arg(3))}
	case "sized":
		in = Sized{Blob: b, Size: size(arg(3))}
	case "giveback":
		g := GiveBack{Blob: b, Reason: reason(arg(4))}
		if r := runs(arg(3)); len(r) > 0 {
			g.Run = r[0]
		}
		g.RetryAfter, _ = time.ParseDuration(arg(5))
		in = g
	case "leave":
		in = Leave{Blob: b}
	case "bye":
		in = Bye{}
	case "report":
		in = Report{Blob: b, Peer: PeerID(arg(3)), Reason: reason(arg(4))}
	case "missing":
		in = Missing{Blob: b, Runs: runs(arg(3))}
	default:
		return fmt.Errorf("unknown command")
	}
	s.print(s.core.Step(s.now, p, in))
	return nil
}

func size(s string) int64 {
	n, _ := strconv.ParseInt(s, 10, 64)
	return n * piece.MinLength
}

func runs(s string) []Run {
	var out []Run
	for _, part := range strings.Split(s, ",") {
		first, last, ok := strings.Cut(part, "-")
		if !ok {
			last = first
		}
		a, err1 := strconv.Atoi(first)
		b, err2 := strconv.Atoi(last)
		if err1 == nil && err2 == nil {
			out = append(out, Run{a, b - a + 1})
		}
	}
	return out
}

func reason(s string) Reason {
	for i, name := range reasonNames {
		if name == s {
			return Reason(i)
		}
	}
	return 0
}

func (r Run) String() string {
	if r.Count == 1 {
		return strconv.Itoa(r.First)
	}
	return fmt.Sprintf("%d-%d", r.First, r.End()-1)
}

func (s *scenario) print(out []Out) {
	for _, o := range out {
		fmt.Fprintf(&s.out, "    -> %s: ", o.To)
		switch m := o.Msg.(type) {
		case *Swarm:
			fmt.Fprintf(&s.out, "swarm %s of %d", m.Blob, m.Size/piece.MinLength)
			for _, n := range m.Add {
				fmt.Fprintf(&s.out, " +%s", n.Peer)
				if n.Reserved {
					s.out.WriteString("(reserved)")
				}
			}
			for _, id := range m.Remove {
				fmt.Fprintf(&s.out, " -%s", id)
			}
		case *Assign:
			from := "origin"
			if m.From.Peer != "" {
				from = string(m.From.Peer)
			}
			fmt.Fprintf(&s.out, "assign %s %v from %s", m.Blob, m.Run, from)
		case *Revoke:
			fmt.Fprintf(&s.out, "revoke %s %v", m.Blob, m.Run)
		case *Ask:
			fmt.Fprintf(&s.out, "ask %s %v", m.Blob, m.Runs)
		case *Probe:
			fmt.Fprintf(&s.out, "probe %s", m.Blob)
		case *Hold:
			fmt.Fprintf(&s.out, "hold %s %v", m.Source, m.For)
		case *Ban:
			fmt.Fprintf(&s.out, "ban %s %v", m.Peer, m.For)
		case *Refused:
			fmt.Fprintf(&s.out, "refused %s %v", m.Blob, m.Reason)
		}
		s.out.WriteByte('\n')
	}
}

// describe returns a ring's ledger as runs of equal state and owner.
func describe(r *ring) string {
	l := r.ledger
	if l == nil {
		return "nothing dealt"
	}
	var parts []string
	for p := 0; p < len(l.state); {
		first := p
		for p < len(l.state) && l.state[p] == l.state[first] && l.owner[p] == l.owner[first] {
			p++
		}
		what := [...]string{"free", "assigned to", "held by", "doubted"}[l.state[first]]
		if m := l.owner[first]; m != nil {
			what += " " + string(m.peer.id)
		}
		parts = append(parts, fmt.Sprintf("%v %s", Run{first, p - first}, what))
	}
	if r.rationed {
		parts = append(parts, "seeds rationed")
	}
	return strings.Join(parts, ", ")
}
