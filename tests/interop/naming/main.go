// Naming is a grpc-go program that keeps its servers in etcd with go.etcd.io/etcd/client/v3/naming, the
// neighbour that tonic-etcd's format "etcd" is for. Whatever happens is one JSON object a line.
//
//	naming serve -etcd URL -service NAME [-ttl SECONDS] [-metadata JSON]
//	naming call  -etcd URL -service NAME [-interval DURATION] [-timeout DURATION] [-authority NAME]
//	naming watch -etcd URL -service NAME
//
// Each mode runs until SIGTERM or ctrl-c.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// The stubs are checked in. After a change to proto/echo.proto: `go generate` in this folder, which needs protoc; the
// two generators are pinned in go.mod.
//
//go:generate ./stubs.sh

func main() {
	modes := map[string]func(context.Context, *clientv3.Client, options) error{
		"serve": serve,
		"call":  call,
		"watch": watch,
	}
	if len(os.Args) < 2 || modes[os.Args[1]] == nil {
		fmt.Fprintln(os.Stderr, "usage: naming serve|call|watch -etcd URL -service NAME [..]")
		os.Exit(2)
	}
	if err := run(modes[os.Args[1]], parse(os.Args[1], os.Args[2:])); err != nil {
		fmt.Fprintln(os.Stderr, "naming:", err)
		os.Exit(1)
	}
}

func run(mode func(context.Context, *clientv3.Client, options) error, options options) error {
	etcd, err := clientv3.New(clientv3.Config{Endpoints: []string{options.etcd}, DialTimeout: 5 * time.Second})
	if err != nil {
		return err
	}
	defer etcd.Close()
	// Ends with the signal that asks the program to leave.
	running, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	return mode(running, etcd, options)
}

type options struct {
	etcd, service     string
	ttl               int64
	metadata          any
	interval, timeout time.Duration
	authority         string
}

func parse(mode string, arguments []string) (parsed options) {
	flags := flag.NewFlagSet(mode, flag.ExitOnError)
	flags.StringVar(&parsed.etcd, "etcd", "http://127.0.0.1:2379", "etcd's URL")
	flags.StringVar(&parsed.service, "service", "echo", "the service's name, with its prefix")
	switch mode {
	case "serve":
		flags.Int64Var(&parsed.ttl, "ttl", 15, "how long etcd keeps the server after it fell silent, in seconds")
		flags.Func("metadata", "what stands beside the address, as JSON (default null)", func(value string) error {
			return json.Unmarshal([]byte(value), &parsed.metadata)
		})
	case "call":
		flags.DurationVar(&parsed.interval, "interval", 10*time.Millisecond, "the time from one call to the next")
		flags.DurationVar(&parsed.timeout, "timeout", 5*time.Second, "how long a call may take")
		flags.StringVar(&parsed.authority, "authority", "", "whom the calls are addressed to (default the service)")
	}
	flags.Parse(arguments)
	return parsed
}

// line is one event and what there is to say about it.
type line map[string]any

var output sync.Mutex

func (l line) print() {
	output.Lock()
	defer output.Unlock()
	if err := json.NewEncoder(os.Stdout).Encode(l); err != nil {
		fmt.Fprintln(os.Stderr, "naming:", err)
	}
}
