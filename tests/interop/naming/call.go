package main

import (
	"context"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	etcdresolver "go.etcd.io/etcd/client/v3/naming/resolver"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/resolver"

	"tonic-etcd/interop/naming/echo"
)

// call resolves etcd:///service, and calls its servers in turn at a steady rate, each call begun at its own time
// whatever became of the others.
//
// Events: resolved, with each set that the resolver hands to gRPC; call, with the answering server's address or with the
// error; stopped, when the last call has ended.
func call(running context.Context, etcd *clientv3.Client, options options) error {
	builder, err := etcdresolver.NewBuilder(etcd)
	if err != nil {
		return err
	}
	dial := []grpc.DialOption{
		grpc.WithResolvers(observed{builder}),
		grpc.WithDefaultServiceConfig(`{"loadBalancingConfig":[{"round_robin":{}}]}`),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
	}
	if options.authority != "" {
		dial = append(dial, grpc.WithAuthority(options.authority))
	}
	connection, err := grpc.NewClient("etcd:///"+options.service, dial...)
	if err != nil {
		return err
	}
	defer connection.Close()
	client := echo.NewEchoClient(connection)

	var calls sync.WaitGroup
	due := time.NewTicker(options.interval)
	defer due.Stop()
	for running.Err() == nil {
		calls.Go(func() { callOnce(client, options.timeout) })
		select {
		case <-due.C:
		case <-running.Done():
		}
	}
	calls.Wait()
	line{"event": "stopped"}.print()
	return nil
}

func callOnce(client echo.EchoClient, timeout time.Duration) {
	limited, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	reply, err := client.UnaryEcho(limited, &echo.EchoRequest{Message: "hi"})
	if err != nil {
		line{"event": "call", "error": err.Error()}.print()
		return
	}
	line{"event": "call", "address": reply.Address}.print()
}

// observed builds etcd's resolver, and prints what it resolves.
type observed struct{ resolver.Builder }

func (o observed) Build(target resolver.Target, channel resolver.ClientConn, options resolver.BuildOptions) (resolver.Resolver, error) {
	return o.Builder.Build(target, printed{channel}, options)
}

type printed struct{ resolver.ClientConn }

func (p printed) UpdateState(state resolver.State) error {
	addresses := []string{}
	for _, endpoint := range state.Endpoints {
		for _, address := range endpoint.Addresses {
			addresses = append(addresses, address.Addr)
		}
	}
	line{"event": "resolved", "addresses": addresses}.print()
	return p.ClientConn.UpdateState(state)
}
