package runtimes

import (
	"bytes"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
)

// tomlFile is a TOML document with the places of its tables and values, so
// that text can be put in without touching the rest.
type tomlFile struct {
	raw    []byte
	doc    map[string]any
	tables []tomlTable
	values []tomlValue
}

// tomlTable is a table header.
type tomlTable struct {
	key []string
	at  int // start of the header's line
	end int // start of the next line, or the end of the document
}

// tomlValue is a key with its value.
type tomlValue struct {
	key        []string // with the table's
	start, end int      // of the value
}

// parseTOML reads a document. An error names the line.
func parseTOML(raw []byte) (*tomlFile, error) {
	f := &tomlFile{raw: raw, doc: map[string]any{}}
	if err := toml.Unmarshal(raw, &f.doc); err != nil {
		if where := (*toml.DecodeError)(nil); errors.As(err, &where) {
			line, _ := where.Position()
			return nil, fmt.Errorf("line %d: %w", line, err)
		}
		return nil, err
	}
	p := unstable.Parser{}
	p.Reset(raw)
	var table []string
	for p.NextExpression() {
		e := p.Expression()
		var key []string
		var last unstable.Range
		for it := e.Key(); it.Next(); {
			key, last = append(key, string(it.Node().Data)), it.Node().Raw
		}
		switch e.Kind {
		case unstable.Table, unstable.ArrayTable:
			table = key
			at := bytes.LastIndexByte(raw[:last.Offset], '\n') + 1
			f.tables = append(f.tables, tomlTable{key, at, lineEnd(raw, int(last.Offset))})
		case unstable.KeyValue:
			eq := int(last.Offset + last.Length)
			eq += bytes.IndexByte(raw[eq:], '=') + 1
			start := eq + len(raw[eq:]) - len(bytes.TrimLeft(raw[eq:], " \t"))
			f.values = append(f.values, tomlValue{slices.Concat(table, key), start, int(e.Raw.Offset + e.Raw.Length)})
		}
	}
	return f, p.Error()
}

// lineEnd returns where the line after the one of offset i starts.
func lineEnd(raw []byte, i int) int {
	if n := bytes.IndexByte(raw[i:], '\n'); n >= 0 {
		return i + n + 1
	}
	return len(raw)
}

// at returns what a path leads to, or nil.
func at(doc map[string]any, key ...string) any {
	var v any = doc
	for _, k := range key {
		m, ok := v.(map[string]any)
		if !ok {
			return nil
		}
		v = m[k]
	}
	return v
}

// table returns the table at a path, empty if there is none.
func table(doc map[string]any, key ...string) map[string]any {
	m, _ := at(doc, key...).(map[string]any)
	return m
}

func text(doc map[string]any, key ...string) string {
	s, _ := at(doc, key...).(string)
	return s
}

// set returns the document with a value at a path. Everything else means what
// it meant before, or the result is an error.
func (f *tomlFile) set(value any, key ...string) (*tomlFile, error) {
	literal, err := tomlLiteral(value)
	if err != nil {
		return nil, err
	}
	name := key[len(key)-1]
	for _, v := range f.values {
		if slices.Equal(v.key, key) {
			return f.spliced(v.start, v.end, literal, value, key)
		}
	}
	for _, t := range f.tables {
		if !slices.Equal(t.key, key[:len(key)-1]) {
			continue
		}
		line := indentAt(f.raw, t.at) + "  " + name + " = " + literal + "\n"
		if t.end == len(f.raw) && !bytes.HasSuffix(f.raw, []byte("\n")) {
			line = "\n" + line
		}
		return f.spliced(t.end, t.end, line, value, key)
	}
	header := make([]string, 0, len(key))
	for _, k := range key[:len(key)-1] {
		header = append(header, tomlKey(k))
	}
	block := "[" + strings.Join(header, ".") + "]\n  " + name + " = " + literal + "\n"
	return f.spliced(len(f.raw), len(f.raw), gapBefore(f.raw)+block, value, key)
}

// gapBefore is what comes between a text and a block appended to it.
func gapBefore(raw []byte) string {
	switch {
	case len(raw) == 0:
		return ""
	case !bytes.HasSuffix(raw, []byte("\n")):
		return "\n\n"
	}
	return "\n"
}

func indentAt(raw []byte, line int) string {
	rest := raw[line:]
	return string(rest[:len(rest)-len(bytes.TrimLeft(rest, " \t"))])
}

// prepend returns the document with a string put before the others of an
// array, which is made if there is none.
func (f *tomlFile) prepend(s string, key ...string) (*tomlFile, error) {
	old, _ := at(f.doc, key...).([]any)
	value := append([]any{s}, old...)
	for _, v := range f.values {
		if !slices.Equal(v.key, key) || f.raw[v.start] != '[' {
			continue
		}
		item := fmt.Sprintf("%q", s)
		if len(old) > 0 {
			item += ", "
		}
		return f.spliced(v.start+1, v.start+1, item, value, key)
	}
	return f.set(value, key...)
}

// spliced replaces a range of the text, and proves that the only difference is
// the value at key.
func (f *tomlFile) spliced(start, end int, text string, value any, key []string) (*tomlFile, error) {
	g, err := parseTOML(slices.Concat(f.raw[:start], []byte(text), f.raw[end:]))
	if err == nil {
		var want *tomlFile
		if want, err = parseTOML(f.raw); err != nil { // a copy of the document
			return nil, err
		}
		put(want.doc, value, key)
		if reflect.DeepEqual(g.doc, want.doc) {
			return g, nil
		}
		err = errors.New("it would change other settings as well")
	}
	return nil, fmt.Errorf("%s cannot be put in: %w", strings.Join(key, "."), err)
}

// put sets a value in a document, making the tables that lead to it.
func put(doc map[string]any, value any, key []string) {
	for _, k := range key[:len(key)-1] {
		next, ok := doc[k].(map[string]any)
		if !ok {
			next = map[string]any{}
			doc[k] = next
		}
		doc = next
	}
	doc[key[len(key)-1]] = value
}

// tomlLiteral writes a string, a bool or a list of strings.
func tomlLiteral(value any) (string, error) {
	switch v := value.(type) {
	case string:
		return fmt.Sprintf("%q", v), nil
	case bool:
		return fmt.Sprint(v), nil
	case []any:
		var items []string
		for _, item := range v {
			s, ok := item.(string)
			if !ok {
				return "", fmt.Errorf("a list that holds %T is not understood", item)
			}
			items = append(items, fmt.Sprintf("%q", s))
		}
		return "[" + strings.Join(items, ", ") + "]", nil
	}
	return "", fmt.Errorf("a value of %T is not understood", value)
}

// tomlKey writes one part of a key, quoted unless it is bare.
func tomlKey(s string) string {
	for _, r := range s {
		if !('a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || r == '_' || r == '-') {
			return fmt.Sprintf("%q", s)
		}
	}
	return s
}
