package tempfile

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func openRoot(t *testing.T) *os.Root {
	t.Helper()
	root, err := os.OpenRoot(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { root.Close() })
	return root
}

func list(t *testing.T, root *os.Root) []string {
	t.Helper()
	entries, err := os.ReadDir(root.Name())
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	slices.Sort(names)
	return names
}

func mustCreate(t *testing.T, root *os.Root, content string) *File {
	t.Helper()
	f, err := Create(root, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(content); err != nil {
		t.Fatal(err)
	}
	return f
}

func check(t *testing.T, root *os.Root, name, want string) {
	t.Helper()
	if got, err := root.ReadFile(name); err != nil || string(got) != want {
		t.Errorf("%s: %q, %v, want %q", name, got, err, want)
	}
}

func TestCommit(t *testing.T) {
	t.Parallel()
	root := openRoot(t)
	f := mustCreate(t, root, "first")
	r, err := f.Reader()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := f.CommitNew("a"); err != nil {
		t.Fatal(err)
	}
	f.Discard()
	check(t, root, "a", "first")
	f = mustCreate(t, root, "second")
	if err := f.CommitNew("a"); !errors.Is(err, fs.ErrExist) {
		t.Errorf("got %v", err)
	}
	check(t, root, "a", "first")
	if err := f.Commit("a"); err != nil {
		t.Fatal(err)
	}
	check(t, root, "a", "second")
	got := make([]byte, 5)
	if _, err := r.Read(got); err != nil || string(got) != "first" {
		t.Errorf("%q, %v", got, err)
	}
	f = mustCreate(t, root, "third")
	if err := f.Commit("no/such/directory"); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	f.Discard()
	f.Discard()
	if names := list(t, root); !slices.Equal(names, []string{"a"}) {
		t.Error(names)
	}
	if err := Write(root, "a", []byte("fourth"), 0o600); err != nil {
		t.Fatal(err)
	}
	check(t, root, "a", "fourth")
	if info, err := root.Stat("a"); err != nil || info.Mode().Perm() != 0o600 {
		t.Error(info.Mode(), err)
	}
}

func TestClean(t *testing.T) {
	t.Parallel()
	root := openRoot(t)
	f := mustCreate(t, root, "somebody writes it")
	outside := filepath.Join(t.TempDir(), "outside")
	for _, name := range []string{".imgcrypt-1.tmp", ".imgcrypt-2.tmp", ".imgcrypt-3", "imgcrypt-4.tmp", ".imgcrypt-all.lock"} {
		if err := root.WriteFile(name, nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	err := errors.Join(os.WriteFile(outside, nil, 0o644), root.Symlink(outside, ".imgcrypt-5.tmp"), root.Mkdir(".imgcrypt-6.tmp", 0o755))
	if err != nil {
		t.Fatal(err)
	}
	Clean(root)
	if err := f.Commit("f"); err != nil {
		t.Error(err)
	}
	want := []string{".imgcrypt-3", ".imgcrypt-5.tmp", ".imgcrypt-6.tmp", ".imgcrypt-all.lock", "f", "imgcrypt-4.tmp"}
	if names := list(t, root); !slices.Equal(names, want) {
		t.Errorf("left: %q", names)
	}
	check(t, root, "f", "somebody writes it")
}

// Some clean up all the time, while others write.
func TestCleanWhileWriting(t *testing.T) {
	t.Parallel()
	root := openRoot(t)
	stop := make(chan struct{})
	var cleaners, writers sync.WaitGroup
	for range 2 {
		cleaners.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					Clean(root)
				}
			}
		})
	}
	for range 4 {
		writers.Go(func() {
			for range 50 {
				if err := Write(root, "f", []byte("content"), 0); err != nil {
					t.Error(err)
				}
			}
		})
	}
	writers.Wait()
	close(stop)
	cleaners.Wait()
	if names := list(t, root); !slices.Equal(names, []string{"f"}) {
		t.Error(names)
	}
}

func TestLock(t *testing.T) {
	t.Parallel()
	for name, lock := range map[string]func(context.Context, *os.Root) (func(), error){
		"directory": func(ctx context.Context, root *os.Root) (func(), error) { return Lock(ctx, root, ".") },
		"file":      func(ctx context.Context, root *os.Root) (func(), error) { return Lock(ctx, root, "f") },
		"by file":   lockByFile,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			root := openRoot(t)
			if err := root.WriteFile("f", nil, 0o644); err != nil {
				t.Fatal(err)
			}
			var wg sync.WaitGroup
			var inside atomic.Int32
			for range 8 {
				wg.Go(func() {
					for range 10 {
						unlock, err := lock(t.Context(), root)
						if err != nil {
							t.Error(err)
							return
						}
						if n := inside.Add(1); n != 1 {
							t.Errorf("%d are inside", n)
						}
						time.Sleep(100 * time.Microsecond)
						inside.Add(-1)
						unlock()
					}
				})
			}
			wg.Wait()
			unlock, err := lock(t.Context(), root)
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
			defer cancel()
			if _, err := lock(ctx, root); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("got %v", err)
			}
			unlock()
			if names := list(t, root); !slices.Equal(names, []string{"f"}) {
				t.Error(names)
			}
		})
	}
}

// Whoever gets the lock has it on what has the name then.
func TestLockOfReplaced(t *testing.T) {
	t.Parallel()
	root := openRoot(t)
	if _, err := Lock(t.Context(), root, "f"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v", err)
	}
	if err := Write(root, "f", []byte("old"), 0); err != nil {
		t.Fatal(err)
	}
	unlock, err := Lock(t.Context(), root, "f")
	if err != nil {
		t.Fatal(err)
	}
	// The one who has the lock replaces the file.
	if err := Write(root, "f", []byte("new"), 0); err != nil {
		t.Fatal(err)
	}
	second, err := Lock(t.Context(), root, "f")
	if err != nil {
		t.Fatal(err)
	}
	unlock()
	second()
}

// The lock of a process that was killed is taken over.
func TestStaleLockByFile(t *testing.T) {
	t.Parallel()
	root := openRoot(t)
	if err := root.WriteFile(lockName, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	old := time.Now().Add(-2 * lockStale)
	if err := root.Chtimes(lockName, old, old); err != nil {
		t.Fatal(err)
	}
	unlock, err := lockByFile(t.Context(), root)
	if err != nil {
		t.Fatal(err)
	}
	unlock()
}

func TestIsName(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]bool{".imgcrypt-X.tmp": true, lockName: true, "index.json": false, ".imgcrypt-": false, "x.tmp": false} {
		if IsName(name) != want {
			t.Errorf("%s: %v", name, !want)
		}
	}
}
