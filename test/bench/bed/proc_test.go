package bed

import (
	"encoding/binary"
	"net"
	"testing"
)

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

func TestListening(t *testing.T) {
	const table = `  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1130 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1
   1: 0100007F:1131 0100007F:9999 01 00000000:00000000 00:00000000 00000000     0        0 2
`
	if binary.NativeEndian.Uint16([]byte{1, 0}) != 1 {
		t.Skip("the table is of a little-endian machine")
	}
	for port, want := range map[int]bool{4400: true, 4401: false, 4402: false} {
		if got := listening(table, &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port}); got != want {
			t.Errorf("port %d: %v, want %v", port, got, want)
		}
	}
}
