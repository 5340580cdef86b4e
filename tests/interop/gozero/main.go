// Gozero registers and watches with github.com/zeromicro/go-zero's discov, the neighbour that tonic-etcd's format
// "go-zero" is for. Whatever happens is one JSON object a line.
//
//	gozero publish -etcd HOST:PORT -key KEY -value ADDRESS
//	gozero watch   -etcd HOST:PORT -key KEY
//
// Each mode runs until SIGTERM or ctrl-c, which go-zero itself handles, as in every go-zero service: it revokes what is
// published, and calls the shutdown listeners a second later.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"slices"
	"sync"

	"github.com/zeromicro/go-zero/core/discov"
	"github.com/zeromicro/go-zero/core/logx"
	"github.com/zeromicro/go-zero/core/proc"
)

func main() {
	modes := map[string]func(options) error{"publish": publish, "watch": watch}
	if len(os.Args) < 2 || modes[os.Args[1]] == nil {
		fmt.Fprintln(os.Stderr, "usage: gozero publish|watch -etcd HOST:PORT -key KEY [-value ADDRESS]")
		os.Exit(2)
	}
	// go-zero logs to standard output unless told otherwise.
	logx.SetWriter(logx.NewWriter(os.Stderr))
	logx.DisableStat()
	if err := modes[os.Args[1]](parse(os.Args[1], os.Args[2:])); err != nil {
		fmt.Fprintln(os.Stderr, "gozero:", err)
		os.Exit(1)
	}
}

type options struct {
	etcd, key, value string
}

func parse(mode string, arguments []string) (parsed options) {
	flags := flag.NewFlagSet(mode, flag.ExitOnError)
	flags.StringVar(&parsed.etcd, "etcd", "127.0.0.1:2379", "etcd's address")
	flags.StringVar(&parsed.key, "key", "echo", "the service's key, without its last segment")
	if mode == "publish" {
		flags.StringVar(&parsed.value, "value", "", "the address to publish")
	}
	flags.Parse(arguments)
	return parsed
}

// publish keeps a value under the key. Events: registered, stopped.
func publish(options options) error {
	publisher := discov.NewPublisher([]string{options.etcd}, options.key, options.value)
	if err := publisher.KeepAlive(); err != nil {
		return err
	}
	line{"event": "registered", "value": options.value}.print()
	untilShutdown()
	return nil
}

// watch follows the values under the key. Events: set, with all values after each change and at the start; stopped.
func watch(options options) error {
	subscriber, err := discov.NewSubscriber([]string{options.etcd}, options.key)
	if err != nil {
		return err
	}
	var turn sync.Mutex
	show := func() {
		turn.Lock()
		defer turn.Unlock()
		values := slices.Sorted(slices.Values(subscriber.Values()))
		line{"event": "set", "values": append([]string{}, values...)}.print()
	}
	subscriber.AddListener(show)
	show()
	untilShutdown()
	return nil
}

func untilShutdown() {
	shutdown := make(chan struct{})
	proc.AddShutdownListener(func() { close(shutdown) })
	<-shutdown
	line{"event": "stopped"}.print()
}

// line is one event and what there is to say about it.
type line map[string]any

var output sync.Mutex

func (l line) print() {
	output.Lock()
	defer output.Unlock()
	if err := json.NewEncoder(os.Stdout).Encode(l); err != nil {
		fmt.Fprintln(os.Stderr, "gozero:", err)
	}
}
