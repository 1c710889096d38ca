package main

import (
	"slices"
	"testing"
	"time"
)

func TestParse(t *testing.T) {
	c, err := parse([]string{"--quick", "--runs", "7", "--rows", "9,2,1,5", "--connections", "1, 8"})
	if err != nil {
		t.Fatal(err)
	}
	if c.Runs != 7 || c.Passing != 4<<30 || c.HitTime != time.Second || !slices.Equal(c.Connections, []int{1, 8}) {
		t.Errorf("got %+v", c.Options)
	}
	if len(c.rows) != 3 || c.rows[0].ID != 9 || c.rows[1].ID != 1 || c.rows[2].ID != 5 {
		t.Errorf("got rows %v", c.rows)
	}
	for _, bad := range [][]string{{"--rows", "99"}, {"--runs", "0"}, {"--connections", "x"}, {"--nodes", "1"}, {"--rate", "-1"}, {"row5"}} {
		if _, err := parse(bad); err == nil {
			t.Errorf("no error for %q", bad)
		}
	}
}
