package bed

import "testing"

func TestParseStat(t *testing.T) {
	const line = "1234 (a (b) c) S 77 1234 1234 0 -1 4194304 500 0 0 0 321 45 6 7 20 0 4 0 100 1000 200 18446744073709551615"
	got, err := parseStat(line)
	if want := (stat{pid: 1234, parent: 77, ticks: 366}); err != nil || got != want {
		t.Errorf("got %+v, %v; want %+v", got, err, want)
	}
	for _, bad := range []string{"", "1 (x", "1 (x) S 2", "x (x) S 2 3 4 5 6 7 8 9 10 11 12 13 14 15"} {
		if _, err := parseStat(bad); err == nil {
			t.Errorf("no error for %q", bad)
		}
	}
}

func TestMissingNamesPackages(t *testing.T) {
	err := Missing(false, Need{"no-such-program-a", "pack"}, Need{"no-such-program-b", "pack"}, Need{"go", "golang"})
	if want := "needs no-such-program-a, no-such-program-b: apt-get install pack"; err == nil || err.Error() != want {
		t.Errorf("got %v, want %q", err, want)
	}
}

func TestEstablished(t *testing.T) {
	const table = `  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1132 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1
   1: 0100007F:1132 0100007F:9999 01 00000000:00000000 00:00000000 00000000     0        0 2
   2: 0100007F:1132 0100007F:9998 01 00000000:00000000 00:00000000 00000000     0        0 3
   3: 0100007F:1132 0100007F:9997 06 00000000:00000000 00:00000000 00000000     0        0 4
   4: 0100007F:9999 0100007F:1132 01 00000000:00000000 00:00000000 00000000     0        0 5
`
	if got := established(table, 4402); got != 2 {
		t.Errorf("%d connections, want 2", got)
	}
}

func TestParseMachine(t *testing.T) {
	got, err := parseMachine("cpu  100 20 30 4000 500 6 7 800 9 0\ncpu0 50 0 0 0 0 0 0 0 0 0\n")
	if want := (100 + 20 + 30 + 6 + 7 + 800) / 100.0; err != nil || got != want {
		t.Errorf("got %v, %v; want %v", got, err, want)
	}
	if _, err := parseMachine("cpu0 1 2 3"); err == nil {
		t.Error("no error for half a line")
	}
}
