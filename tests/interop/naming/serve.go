package main

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/naming/endpoints"
	"google.golang.org/grpc"

	"tonic-etcd/interop/naming/echo"
)

// serve answers echo calls under a key that lives as long as its lease, and takes the key out before it stops.
//
// Events: listening, registered, deregistered, stopped.
func serve(running context.Context, etcd *clientv3.Client, options options) error {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	address := listener.Addr().String()
	server := grpc.NewServer()
	echo.RegisterEchoServer(server, &echoServer{address: address})
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	line{"event": "listening", "address": address}.print()

	leave, err := register(running, etcd, address, options)
	if err != nil {
		return err
	}
	select {
	case err := <-served:
		return err
	case <-running.Done():
	}
	if err := leave(); err != nil {
		return err
	}
	server.GracefulStop()
	line{"event": "stopped"}.print()
	return <-served
}

// register puts the address under a lease that is kept alive, and returns what takes both away.
func register(running context.Context, etcd *clientv3.Client, address string, options options) (func() error, error) {
	lease, err := etcd.Grant(running, options.ttl)
	if err != nil {
		return nil, err
	}
	// Beyond the signal: the lease lives until it is revoked.
	answers, err := etcd.KeepAlive(context.Background(), lease.ID)
	if err != nil {
		return nil, err
	}
	go func() {
		for range answers {
		}
	}()

	manager, err := endpoints.NewManager(etcd, options.service)
	if err != nil {
		return nil, err
	}
	key := options.service + "/" + address
	endpoint := endpoints.Endpoint{Addr: address, Metadata: options.metadata}
	if err := manager.AddEndpoint(running, key, endpoint, clientv3.WithLease(lease.ID)); err != nil {
		return nil, err
	}
	line{"event": "registered", "key": key}.print()

	return func() error {
		if err := manager.DeleteEndpoint(context.Background(), key); err != nil {
			return err
		}
		_, err := etcd.Revoke(context.Background(), lease.ID)
		line{"event": "deregistered"}.print()
		return err
	}, nil
}

// echoServer answers with what it is asked, and with the address that it is registered under.
type echoServer struct {
	echo.UnimplementedEchoServer
	address string
}

func (s *echoServer) UnaryEcho(_ context.Context, request *echo.EchoRequest) (*echo.EchoReply, error) {
	return s.reply(request.Message), nil
}

// One reply a word.
func (s *echoServer) ServerStreamingEcho(request *echo.EchoRequest, stream grpc.ServerStreamingServer[echo.EchoReply]) error {
	for _, word := range strings.Fields(request.Message) {
		if err := stream.Send(s.reply(word)); err != nil {
			return err
		}
	}
	return nil
}

// One reply of all messages, as words.
func (s *echoServer) ClientStreamingEcho(stream grpc.ClientStreamingServer[echo.EchoRequest, echo.EchoReply]) error {
	var words []string
	for {
		request, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return stream.SendAndClose(s.reply(strings.Join(words, " ")))
		}
		if err != nil {
			return err
		}
		words = append(words, request.Message)
	}
}

// One reply a message, as they come.
func (s *echoServer) BidirectionalStreamingEcho(stream grpc.BidiStreamingServer[echo.EchoRequest, echo.EchoReply]) error {
	for {
		request, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := stream.Send(s.reply(request.Message)); err != nil {
			return err
		}
	}
}

func (s *echoServer) reply(message string) *echo.EchoReply {
	return &echo.EchoReply{Message: message, Address: s.address}
}
