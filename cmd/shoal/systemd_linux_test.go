package main

import (
	"context"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// TestSystemd is a restart under systemd: the socket stays open, and a request
// that comes while no daemon is there is answered by the next one. Each says
// when it serves, that it is alive, and when it stops.
func TestSystemd(t *testing.T) {
	const patience = time.Minute
	manager, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(t.TempDir(), "notify"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer manager.Close()
	told := func(want string) {
		t.Helper()
		b := make([]byte, 100)
		manager.SetReadDeadline(time.Now().Add(patience))
		for {
			n, err := manager.Read(b)
			if err != nil {
				t.Fatalf("waiting for %s: %v", want, err)
			}
			switch got := string(b[:n]); {
			case got == want:
				return
			case got != "WATCHDOG=1":
				t.Fatalf("told %s, want %s", got, want)
			}
		}
	}
	for command, path := range map[string]string{"daemon": "/v2/", "scheduler": "/readyz"} {
		t.Run(command, func(t *testing.T) {
			socket, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer socket.Close()
			file, err := socket.(*net.TCPListener).File()
			if err != nil {
				t.Fatal(err)
			}
			defer file.Close()
			name, flags := "listen", "daemon --peer-listen 127.0.0.1:0 --admin-listen 127.0.0.1:0 --data-dir "+filepath.Join(t.TempDir(), "data")
			if command == "scheduler" {
				name, flags = "admin-listen", "scheduler --listen 127.0.0.1:0"
			}
			start := func() *exec.Cmd {
				// The shell has the process ID that its program will have.
				cmd := exec.Command("sh", "-c", "LISTEN_PID=$$ exec shoal "+flags)
				cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+manager.LocalAddr().String(), "WATCHDOG_USEC=100000",
					"LISTEN_FDS=1", "LISTEN_FDNAMES="+name)
				cmd.ExtraFiles = []*os.File{file}
				cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
				if err := cmd.Start(); err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { cmd.Process.Kill() })
				told("READY=1")
				told("WATCHDOG=1")
				return cmd
			}
			stop := func(cmd *exec.Cmd) {
				t.Helper()
				if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
					t.Fatal(err)
				}
				told("STOPPING=1")
				if err := cmd.Wait(); err != nil {
					t.Fatal(err)
				}
			}
			stop(start())

			answered := make(chan error, 1)
			asking := make(chan struct{})
			client := http.Client{Timeout: patience, Transport: &http.Transport{
				DisableKeepAlives: true,
				DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
					defer close(asking)
					return new(net.Dialer).DialContext(ctx, network, addr)
				},
			}}
			go func() {
				resp, err := client.Get("http://" + socket.Addr().String() + path)
				if err == nil {
					resp.Body.Close()
				}
				answered <- err
			}()
			<-asking
			cmd := start()
			if err := <-answered; err != nil {
				t.Errorf("asked while it was away: %v", err)
			}
			stop(cmd)
		})
	}
}
