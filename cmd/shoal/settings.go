package main

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/dustin/go-humanize"
	"github.com/spf13/pflag"
	"sigs.k8s.io/yaml"
)

// applySettings sets the flags that the command line did not, from the
// environment and then from the file of --config.
func applySettings(flags *pflag.FlagSet) error {
	given := map[string]bool{}
	flags.Visit(func(f *pflag.Flag) { given[f.Name] = true })
	var bad error
	flags.VisitAll(func(f *pflag.Flag) {
		value, ok := os.LookupEnv(envName(f.Name))
		if !ok || given[f.Name] || bad != nil || f.Name == "help" {
			return
		}
		given[f.Name] = true
		values := []string{value}
		if isList(f) {
			values = strings.Fields(value)
		}
		if err := set(flags, f, values); err != nil {
			bad = &usageError{fmt.Errorf("environment variable %s: %w", envName(f.Name), err)}
		}
	})
	if bad != nil {
		return bad
	}
	config := flags.Lookup("config")
	if config == nil || config.Value.String() == "" {
		return nil
	}
	file := config.Value.String()
	if err := applyFile(flags, file, given); err != nil {
		return &usageError{fmt.Errorf("--config %s: %w", file, err)}
	}
	return nil
}

func envName(flag string) string {
	return "SHOAL_" + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

func applyFile(flags *pflag.FlagSet, file string, given map[string]bool) error {
	content, err := os.ReadFile(file)
	if err != nil {
		return errors.Unwrap(err)
	}
	var doc map[string]any
	if err := yaml.UnmarshalStrict(content, &doc); err != nil {
		return err
	}
	keys := make([]string, 0, len(doc))
	for k := range doc {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	for _, key := range keys {
		f := flags.Lookup(key)
		if f == nil || key == "config" || key == "help" {
			return fmt.Errorf("unknown key %q", key)
		}
		values, err := yamlValues(doc[key], isList(f))
		if err != nil {
			return fmt.Errorf("key %q: %w", key, err)
		}
		if given[key] {
			continue
		}
		if err := set(flags, f, values); err != nil {
			return fmt.Errorf("key %q: %w", key, err)
		}
	}
	return nil
}

// yamlValues returns a value of the file as the flag takes it.
func yamlValues(v any, list bool) ([]string, error) {
	if items, ok := v.([]any); ok {
		if !list {
			return nil, errors.New("takes one value, not a list")
		}
		var out []string
		for _, item := range items {
			one, err := yamlValues(item, false)
			if err != nil {
				return nil, err
			}
			out = append(out, one...)
		}
		return out, nil
	}
	switch v := v.(type) {
	case string:
		return []string{v}, nil
	case bool:
		return []string{fmt.Sprint(v)}, nil
	case float64: // what JSON, to which the YAML is turned, makes of a number
		return []string{strconv.FormatFloat(v, 'f', -1, 64)}, nil
	default:
		return nil, errors.New("want a plain value")
	}
}

func isList(f *pflag.Flag) bool {
	_, ok := f.Value.(pflag.SliceValue)
	return ok
}

func set(flags *pflag.FlagSet, f *pflag.Flag, values []string) error {
	if l, ok := f.Value.(pflag.SliceValue); ok {
		return l.Replace(values)
	}
	if err := f.Value.Set(values[0]); err != nil {
		return fmt.Errorf("%q: %w", values[0], err)
	}
	return nil
}

// bytes is a flag for a number of bytes, such as 20GiB or 100MB.
type bytes struct{ n *int64 }

func newBytes(n *int64) bytes { return bytes{n} }

func (b bytes) String() string {
	if b.n == nil || *b.n == 0 {
		return "0"
	}
	return strings.ReplaceAll(humanize.IBytes(uint64(*b.n)), " ", "")
}

func (b bytes) Type() string { return "SIZE" }

// smallestBare is how many bytes a size without a unit must be at least. Below
// it the unit was more likely forgotten.
const smallestBare = 1 << 20

func (b bytes) Set(s string) error {
	n, err := humanize.ParseBytes(s)
	if err != nil || n > 1<<62 {
		return errors.New("want a size such as 20GiB or 500MB")
	}
	if bare := strings.Trim(s, "0123456789., ") == ""; bare && n != 0 && n < smallestBare {
		return fmt.Errorf("the unit is missing: want a size such as 20GiB or 500MB; %sB is %d bytes", strings.TrimSpace(s), n)
	}
	*b.n = int64(n)
	return nil
}

func (l *logging) addFlags(f *pflag.FlagSet) {
	f.Var(logLevel{&l.level}, "log-level", "debug, info, warn or error")
	f.Var(logFormat{&l.json}, "log-format", "text or json")
}

type logLevel struct{ level *slog.Level }

func (l logLevel) String() string {
	if l.level == nil {
		return ""
	}
	return strings.ToLower(l.level.String())
}
func (l logLevel) Type() string { return "LEVEL" }
func (l logLevel) Set(s string) error {
	i := slices.Index([]string{"debug", "info", "warn", "error"}, s)
	if i < 0 {
		return errors.New("want debug, info, warn or error")
	}
	*l.level = []slog.Level{slog.LevelDebug, slog.LevelInfo, slog.LevelWarn, slog.LevelError}[i]
	return nil
}

type logFormat struct{ json *bool }

func (l logFormat) String() string {
	if l.json != nil && *l.json {
		return "json"
	}
	return "text"
}
func (l logFormat) Type() string { return "FORMAT" }
func (l logFormat) Set(s string) error {
	if s != "text" && s != "json" {
		return errors.New("want text or json")
	}
	*l.json = s == "json"
	return nil
}
