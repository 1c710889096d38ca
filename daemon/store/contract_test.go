package store_test

import (
	"testing"

	"github.com/shoalproject/shoal/daemon/store"
	"github.com/shoalproject/shoal/daemon/store/storetest"
)

func TestContract(t *testing.T) {
	storetest.Run(t, func(t *testing.T) storetest.Store {
		s, err := store.Open(store.Config{Dir: t.TempDir() + "/data", MaxBytes: 64 << 20})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if st := s.Stats(); st.Open != 0 || st.Corruptions != 0 {
				t.Errorf("at the end: %+v", st)
			}
			s.Close()
		})
		return storetest.Wrap(s)
	})
}
