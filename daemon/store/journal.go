package store

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"

	"github.com/shoalproject/shoal/piece"
)

// The journal of an unfinished blob, all numbers big-endian:
//
//	header   8 bytes "shoalpj1", 8 size of the blob, 8 piece length, 4 CRC-32C
//	record   4 bytes piece index, 32 BLAKE3 sum, 4 CRC-32C
//
// Records are appended as pieces are verified, and never synced: a record is
// a claim, and the piece is hashed again before it is believed. The CRC only
// ends the reading at a torn or unwritten tail.
const (
	journalMagic  = "shoalpj1"
	journalHeader = 28
	journalRecord = 4 + piece.SumSize + 4
	// maxJournalShare bounds a journal: this many records per piece, beyond
	// which a piece was fetched again and again. Older claims are dropped.
	maxJournalShare = 4
)

var (
	errJournal = errors.New("journal is damaged")
	castagnoli = crc32.MakeTable(crc32.Castagnoli)
)

func appendCRC(b []byte, from int) []byte {
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b[from:], castagnoli))
}

func hasCRC(b []byte) bool {
	n := len(b) - 4
	return crc32.Checksum(b[:n], castagnoli) == binary.BigEndian.Uint32(b[n:])
}

func encodeJournalHeader(l piece.Layout) []byte {
	b := make([]byte, 0, journalHeader)
	b = append(b, journalMagic...)
	b = binary.BigEndian.AppendUint64(b, uint64(l.Size()))
	b = binary.BigEndian.AppendUint64(b, uint64(l.Length()))
	return appendCRC(b, 0)
}

func encodeJournalRecord(i int, sum piece.Sum) []byte {
	b := make([]byte, 0, journalRecord)
	b = binary.BigEndian.AppendUint32(b, uint32(i))
	b = append(b, sum[:]...)
	return appendCRC(b, 0)
}

// decodeJournalHeader returns the layout of the blob that a journal is about.
func decodeJournalHeader(b []byte) (piece.Layout, error) {
	if len(b) < journalHeader || string(b[:8]) != journalMagic || !hasCRC(b[:journalHeader]) {
		return piece.Layout{}, errJournal
	}
	size := int64(binary.BigEndian.Uint64(b[8:]))
	if size < 0 {
		return piece.Layout{}, errJournal
	}
	l := piece.NewLayout(size)
	if binary.BigEndian.Uint64(b[16:]) != uint64(l.Length()) {
		return piece.Layout{}, errJournal
	}
	return l, nil
}

// decodeJournalRecords calls claim for each record up to the first that is
// torn or speaks of no piece, and returns the bytes read so far. The last
// claim about a piece counts.
func decodeJournalRecords(b []byte, count int, claim func(i int, sum piece.Sum)) (end int) {
	for len(b[end:]) >= journalRecord {
		rec := b[end : end+journalRecord]
		i := binary.BigEndian.Uint32(rec)
		if !hasCRC(rec) || uint64(i) >= uint64(count) {
			break
		}
		claim(int(i), piece.Sum(rec[4:]))
		end += journalRecord
	}
	return end
}

// readJournal reads the claims of a journal of layout l into sums and
// claimed, and returns where the next record goes.
func readJournal(f file, l piece.Layout, sums []piece.Sum, claimed *piece.Set) (end int64, err error) {
	limit := journalHeader + maxJournalShare*journalRecord*int64(l.Count())
	info, err := f.stat()
	if err != nil {
		return 0, err
	}
	b := make([]byte, min(info.size, limit))
	if _, err := f.ReadAt(b, 0); err != nil && err != io.EOF {
		return 0, err
	}
	got, err := decodeJournalHeader(b)
	if err != nil {
		return 0, err
	}
	if got != l {
		return 0, errJournal
	}
	end = journalHeader + int64(decodeJournalRecords(b[journalHeader:], l.Count(), func(i int, sum piece.Sum) {
		sums[i] = sum
		claimed.Add(i)
	}))
	if end == limit {
		// Full: only claims are lost by starting it over.
		claimed2 := piece.NewSet(l.Count())
		*claimed = *claimed2
		end = journalHeader
	}
	return end, nil
}
