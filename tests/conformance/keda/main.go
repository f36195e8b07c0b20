// Command keda drives KEDA's own external and external-push scalers against a running external scaler and says, one line
// a check, whether KEDA sees what it should.
//
// It needs somebody who creates queues, sends messages, and stops and starts the servers: it writes a line "ask ..." to
// its standard output and waits for a line "ok ..." or "error ..." on its standard input. run.py answers; so can a person.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"runtime/debug"
	"time"

	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"
)

// checkTimeout bounds one check. KEDA itself sets no deadline on its calls, so a hung server shows here.
const checkTimeout = 90 * time.Second

// errSkip marks a check that this KEDA, or this run, cannot make; it is printed and does not fail the run.
var errSkip = errors.New("")

func skip(format string, args ...any) error {
	return fmt.Errorf("%w%s", errSkip, fmt.Sprintf(format, args...))
}

func main() {
	s := &session{helper: newHelper(os.Stdin, os.Stdout), version: kedaVersion()}
	var metadata string
	flag.StringVar(&s.address, "address", "127.0.0.1:6000", "host:port where the scaler listens in plain text")
	flag.StringVar(&metadata, "metadata", `{"source":"sqs","awsRegion":"us-east-1"}`,
		"trigger metadata of every SQS check, as a JSON object; queueURL is added to it")
	flag.StringVar(&s.prometheus, "prometheus", "", "a Prometheus server's URL, for the checks with fractions")
	flag.StringVar(&s.tlsAddress, "tls-address", "", "host:port where the scaler listens with mutual TLS, for the TLS checks")
	flag.StringVar(&s.caFile, "tls-ca", "", "file with the CA of the scaler's certificate")
	flag.StringVar(&s.certFile, "tls-cert", "", "file with KEDA's client certificate")
	flag.StringVar(&s.keyFile, "tls-key", "", "file with KEDA's client key")
	flag.Parse()
	if err := json.Unmarshal([]byte(metadata), &s.metadata); err != nil {
		fmt.Fprintf(os.Stderr, "--metadata is not a JSON object of strings: %v\n", err)
		os.Exit(2)
	}
	ctrllog.SetLogger(recorded.logger()) // KEDA tells some errors to its log only

	failed, skipped := 0, 0
	fmt.Printf("KEDA %s\n", s.version)
	for _, check := range checks {
		s.check = check.name
		started := time.Now()
		found, err := runCheck(check, s)
		took := time.Since(started).Seconds()
		switch {
		case errors.Is(err, errSkip):
			skipped++
			fmt.Printf("skip  %s: %s\n", check.says, err)
		case err != nil:
			failed++
			fmt.Printf("FAIL  %s: %v [%.1f s]\n", check.says, err, took)
		case found != "":
			fmt.Printf("ok    %s: %s [%.1f s]\n", check.says, found, took)
		default:
			fmt.Printf("ok    %s [%.1f s]\n", check.says, took)
		}
	}
	fmt.Printf("KEDA %s: %d ok, %d failed, %d skipped\n", s.version, len(checks)-failed-skipped, failed, skipped)
	if failed > 0 {
		os.Exit(1)
	}
}

// runCheck runs one check and waits no longer than checkTimeout, even if a call into KEDA ignores its context.
func runCheck(check check, s *session) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), checkTimeout)
	defer cancel()
	type result struct {
		found string
		err   error
	}
	done := make(chan result, 1)
	go func() {
		found, err := check.run(ctx, s)
		done <- result{found, err}
	}()
	select {
	case r := <-done:
		return r.found, r.err
	case <-time.After(checkTimeout + 5*time.Second):
		return "", fmt.Errorf("still waiting after %v", checkTimeout)
	}
}

// kedaVersion is the version of KEDA's module that was compiled in.
func kedaVersion() string {
	info, ok := debug.ReadBuildInfo()
	if ok {
		for _, module := range info.Deps {
			if module.Path == "github.com/kedacore/keda/v2" {
				return module.Version
			}
		}
	}
	return "of unknown version"
}
