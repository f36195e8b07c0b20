package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"
	"time"

	"github.com/kedacore/keda/v2/pkg/scalers/scalersconfig"
	v2 "k8s.io/api/autoscaling/v2"
)

// check is one thing KEDA must see. `run` returns what it saw, for the printed line.
type check struct {
	name string // part of queue and object names
	says string
	run  func(context.Context, *session) (string, error)
}

var checks = []check{
	{"spec", "the spec has a stable name with KEDA's index and the trigger's target", specOfAnEmptyQueue},
	{"value-type", "metricType Value puts the target where the HPA looks for it", targetOfTypeValue},
	{"metrics", "value and activity follow the queue", valueFollowsTheQueue},
	{"activation", "at the activation threshold it is inactive, above it active", activationIsStrict},
	{"in-flight", "messages in flight count unless scaleOnInFlight is false", inFlightMessages},
	{"from-env", "FromEnv keys arrive resolved, credentials too", fromEnvIsResolved},
	{"from-env-unset", "an unresolved FromEnv key counts as not given", unresolvedFromEnv},
	{"fractions", "fractions: exact from KEDA 2.17 on, rounded up before", fractions},
	{"invalid", "invalid metadata fails the spec and names every field", invalidMetadata},
	{"unknown-key", "a misspelt key fails the spec and names the nearest key", misspeltKey},
	{"huge", "metadata of a megabyte is refused", hugeMetadata},
	{"missing", "a missing queue has a spec, and metrics fail (never zero)", missingQueue},
	{"unreachable", "an unreachable source has a spec, and metrics fail soon", unreachableSource},
	{"unknown-metric", "a metric name that was never announced fails", unknownMetric},
	{"push", "push sends the state at open and true when work arrives", pushTellsActivation},
	{"heartbeat", "push repeats true while active", pushRepeatsTrue},
	{"stream-spec", "StreamMetricSpec is unimplemented and KEDA stays with the spec it asks for", streamMetricSpec},
	{"crowd", "200 push scalers on one connection all get true", crowdOfPushScalers},
	{"age", "the server ends an old stream with OK, KEDA comes back after 2 s", streamsEndCleanly},
	{"restart", "a restart ends streams with OK, KEDA comes back to both", serverRestart},
	{"outage", "a broker outage is held, then metrics fail; push never turns false", brokerOutage},
	{"tls", "mutual TLS with caCert, tlsClientCert and tlsClientKey", mutualTLS},
	{"tls-refused", "without a client certificate or in plain text the TLS port refuses", mutualTLSRefused},
	{"tls-namespace", "a client certificate speaks for its namespaces only", certificateOfAnotherNamespace},
}

var metricName = regexp.MustCompile(`^s\d+-target-sqs-[a-z0-9-]+$`)

func specOfAnEmptyQueue(ctx context.Context, s *session) (string, error) {
	url, err := s.queue("")
	if err != nil {
		return "", err
	}
	names := map[int]string{}
	for _, index := range []int{0, 3, 0} { // 0 twice: the name must not change
		config := s.config(url, map[string]string{"queueLength": "7"})
		config.TriggerIndex = index
		scaler, err := polled(ctx, config)
		if err != nil {
			return "", err
		}
		metric, err := spec(ctx, config, scaler)
		if err != nil {
			return "", err
		}
		name := metric.Metric.Name
		if !metricName.MatchString(name) || len(name) > 103 {
			return "", fmt.Errorf("the name is %q, expected s%d-target-sqs-..., at most 100 characters after the index", name, index)
		}
		if earlier, ok := names[index]; ok && earlier != name {
			return "", fmt.Errorf("the name was %q and is now %q", earlier, name)
		}
		names[index] = name
		target := metric.Target
		if target.Type != v2.AverageValueMetricType || target.AverageValue == nil || target.AverageValue.String() != "7" {
			return "", fmt.Errorf("the target is %+v, expected AverageValue 7", target)
		}
	}
	if strings.TrimPrefix(names[0], "s0") != strings.TrimPrefix(names[3], "s3") {
		return "", fmt.Errorf("names of index 0 and 3 are %q and %q", names[0], names[3])
	}
	return names[0], nil
}

func targetOfTypeValue(ctx context.Context, s *session) (string, error) {
	url, err := s.queue("")
	if err != nil {
		return "", err
	}
	config := s.config(url, nil)
	config.MetricType = v2.ValueMetricType
	scaler, err := polled(ctx, config)
	if err != nil {
		return "", err
	}
	metric, err := spec(ctx, config, scaler)
	if err != nil {
		return "", err
	}
	if metric.Target.Value == nil || metric.Target.Value.String() != "5" || metric.Target.AverageValue != nil {
		return "", fmt.Errorf("the target is %+v, expected Value 5 (queueLength's default)", metric.Target)
	}
	return "", nil
}

func valueFollowsTheQueue(ctx context.Context, s *session) (string, error) {
	url, err := s.queue("")
	if err != nil {
		return "", err
	}
	config := s.config(url, nil)
	scaler, err := polled(ctx, config)
	if err != nil {
		return "", err
	}
	first, err := poll(ctx, config, scaler)
	if err != nil { // a process that has just started may answer UNAVAILABLE; KEDA retries exactly once, at once
		first, err = poll(ctx, config, scaler)
	}
	if err != nil {
		return "", fmt.Errorf("first poll and its retry: %w", err)
	}
	if (first != reading{0, false}) {
		return "", fmt.Errorf("KEDA sees %s in an empty queue", first)
	}
	if _, err := s.ask("send 12 %s", url); err != nil {
		return "", err
	}
	if err := pollUntil(ctx, config, scaler, reading{12, true}); err != nil {
		return "", err
	}
	if _, err := s.ask("purge %s", url); err != nil {
		return "", err
	}
	if err := pollUntil(ctx, config, scaler, reading{0, false}); err != nil {
		return "", err
	}
	return "0, 12, 0", nil
}

func activationIsStrict(ctx context.Context, s *session) (string, error) {
	url, err := s.queue("")
	if err != nil {
		return "", err
	}
	if _, err := s.ask("send 6 %s", url); err != nil {
		return "", err
	}
	config := s.config(url, map[string]string{"activationQueueLength": "6"})
	scaler, err := polled(ctx, config)
	if err != nil {
		return "", err
	}
	if err := pollUntil(ctx, config, scaler, reading{6, false}); err != nil {
		return "", err
	}
	if _, err := s.ask("send 1 %s", url); err != nil {
		return "", err
	}
	return "", pollUntil(ctx, config, scaler, reading{7, true})
}

func inFlightMessages(ctx context.Context, s *session) (string, error) {
	url, err := s.queue("")
	if err != nil {
		return "", err
	}
	if _, err := s.ask("send 5 %s", url); err != nil {
		return "", err
	}
	if _, err := s.ask("receive 2 %s", url); err != nil {
		return "", err
	}
	for flag, expected := range map[string]reading{"": {5, true}, "false": {3, true}} {
		config := s.config(url, map[string]string{"scaleOnInFlight": flag})
		scaler, err := polled(ctx, config)
		if err != nil {
			return "", err
		}
		if err := pollUntil(ctx, config, scaler, expected); err != nil {
			return "", fmt.Errorf("scaleOnInFlight %q: %w", flag, err)
		}
	}
	return "", nil
}

func fromEnvIsResolved(ctx context.Context, s *session) (string, error) {
	url, err := s.queue("")
	if err != nil {
		return "", err
	}
	if _, err := s.ask("send 3 %s", url); err != nil {
		return "", err
	}
	// KEDA looks the variables up in the scale target's containers and hands them to the scaler's factory.
	config := s.config("", map[string]string{
		"queueURLFromEnv":           "QUEUE",
		"awsAccessKeyID":            "",
		"awsAccessKeyIDFromEnv":     "KEY_ID",
		"awsSecretAccessKey":        "",
		"awsSecretAccessKeyFromEnv": "SECRET",
	})
	config.ResolvedEnv = map[string]string{
		"QUEUE":  url,
		"KEY_ID": s.metadata["awsAccessKeyID"],
		"SECRET": s.metadata["awsSecretAccessKey"],
	}
	scaler, err := polled(ctx, config)
	if err != nil {
		return "", err
	}
	return "", pollUntil(ctx, config, scaler, reading{3, true})
}

func unresolvedFromEnv(ctx context.Context, s *session) (string, error) {
	return failingSpec(ctx, s, s.config("", map[string]string{"queueURLFromEnv": "ABSENT"}), "InvalidArgument", "queueURL")
}

func fractions(ctx context.Context, s *session) (string, error) {
	if s.prometheus == "" {
		return "", skip("it needs a Prometheus server, and none was given")
	}
	config := s.config("", nil)
	config.TriggerMetadata = map[string]string{
		"scalerAddress": s.address, "source": "prometheus", "serverAddress": s.prometheus,
		"query": "vector(7.25)", "threshold": "2.5", "activationThreshold": "7.2", "sampleSeconds": "0.5",
	}
	scaler, err := polled(ctx, config)
	if err != nil {
		return "", err
	}
	metric, err := spec(ctx, config, scaler)
	if err != nil {
		return "", err
	}
	target, expected := 2.5, reading{7.25, true}
	if s.readsIntegersOnly() {
		target, expected = 3, reading{8, true}
	}
	if got := metric.Target.AverageValue.AsApproximateFloat64(); got != target {
		return "", fmt.Errorf("the target is %g, expected %g", got, target)
	}
	if err := pollUntil(ctx, config, scaler, expected); err != nil {
		return "", err
	}
	return fmt.Sprintf("7.25 is seen as %g, target 2.5 as %g", expected.value, target), nil
}

// readsIntegersOnly says whether this KEDA is from before 2.17, whose proto has no float fields.
func (s *session) readsIntegersOnly() bool {
	var major, minor int
	_, err := fmt.Sscanf(s.version, "v%d.%d.", &major, &minor)
	return err == nil && major == 2 && minor < 17
}

// failingSpec expects GetMetricSpec to fail with `code` and the words in its message, as KEDA logs it.
func failingSpec(ctx context.Context, s *session, config *scalersconfig.ScalerConfig, code string, words ...string) (string, error) {
	scaler, err := polled(ctx, config)
	if err != nil {
		return "", err
	}
	metric, err := spec(ctx, config, scaler)
	if err == nil {
		return "", fmt.Errorf("KEDA got the spec %s, expected %s", metric.Metric.Name, code)
	}
	if err := refused(err, code, words...); err != nil {
		return "", err
	}
	return told(err), nil
}

func invalidMetadata(ctx context.Context, s *session) (string, error) {
	url, err := s.queue("")
	if err != nil {
		return "", err
	}
	config := s.config(url, map[string]string{"queueLength": "many", "scaleOnInFlight": "perhaps"})
	return failingSpec(ctx, s, config, "InvalidArgument", "queueLength", "scaleOnInFlight")
}

func misspeltKey(ctx context.Context, s *session) (string, error) {
	url, err := s.queue("")
	if err != nil {
		return "", err
	}
	config := s.config(url, map[string]string{"queueLenght": "5"})
	return failingSpec(ctx, s, config, "InvalidArgument", "queueLenght", "queueLength")
}

func hugeMetadata(ctx context.Context, s *session) (string, error) {
	config := s.config("https://sqs.test/1/"+strings.Repeat("q", 1<<20), nil)
	return failingSpec(ctx, s, config, "ResourceExhausted")
}

// failingMetrics expects a spec, and then GetMetrics to fail with `code` within `patience`.
func failingMetrics(ctx context.Context, config *scalersconfig.ScalerConfig, patience time.Duration, code string, words ...string) (string, error) {
	scaler, err := polled(ctx, config)
	if err != nil {
		return "", err
	}
	metric, err := spec(ctx, config, scaler)
	if err != nil {
		return "", fmt.Errorf("GetMetricSpec must work, or KEDA's fallback never starts: %w", err)
	}
	var last error
	for attempt := range 2 { // KEDA retries exactly once, at once
		started := time.Now()
		values, active, err := scaler.GetMetricsAndActivity(ctx, metric.Metric.Name)
		if err == nil {
			return "", fmt.Errorf("attempt %d: KEDA got %d values, active %t, expected %s", attempt+1, len(values), active, code)
		}
		if took := time.Since(started); took > patience {
			return "", fmt.Errorf("attempt %d took %v, expected at most %v", attempt+1, took, patience)
		}
		last = err
	}
	if err := refused(last, code, words...); err != nil {
		return "", err
	}
	return told(last), nil
}

func missingQueue(ctx context.Context, s *session) (string, error) {
	url, err := s.queue("")
	if err != nil {
		return "", err
	}
	if _, err := s.ask("delete %s", url); err != nil {
		return "", err
	}
	return failingMetrics(ctx, s.config(url, nil), 3*time.Second, "FailedPrecondition", s.object(""))
}

func unreachableSource(ctx context.Context, s *session) (string, error) {
	// Port 9 is "discard": nothing listens there.
	config := s.config("http://127.0.0.1:9/123456789012/orders", map[string]string{"awsEndpoint": "http://127.0.0.1:9"})
	return failingMetrics(ctx, config, 3*time.Second, "Unavailable", "can't be reached")
}

func unknownMetric(ctx context.Context, s *session) (string, error) {
	url, err := s.queue("")
	if err != nil {
		return "", err
	}
	scaler, err := polled(ctx, s.config(url, nil))
	if err != nil {
		return "", err
	}
	_, _, err = scaler.GetMetricsAndActivity(ctx, "s0-somebody-elses-metric")
	if err := refused(err, "NotFound"); err != nil {
		return "", err
	}
	return told(err), nil
}

func pushTellsActivation(ctx context.Context, s *session) (string, error) {
	url, err := s.queue("")
	if err != nil {
		return "", err
	}
	started := time.Now()
	p, err := push(ctx, s.config(url, nil))
	if err != nil {
		return "", err
	}
	if _, err := p.waitFor(ctx, started, false, 5*time.Second); err != nil {
		return "", fmt.Errorf("state at open: %w", err)
	}
	sent := time.Now()
	if _, err := s.ask("send 4 %s", url); err != nil {
		return "", err
	}
	took, err := p.waitFor(ctx, sent, true, 15*time.Second)
	if err != nil {
		return "", err
	}
	// What Run says and what a poll of the same trigger says must agree.
	if err := pollUntil(ctx, p.config, p.scaler, reading{4, true}); err != nil {
		return "", err
	}
	p.stop()
	if err := until(ctx, 5*time.Second, func() (bool, string) {
		p.mutex.Lock()
		defer p.mutex.Unlock()
		return p.closed, "Run does not end although its context is cancelled"
	}); err != nil {
		return "", err
	}
	return fmt.Sprintf("true %.2f s after the first message", took.Seconds()), nil
}

func pushRepeatsTrue(ctx context.Context, s *session) (string, error) {
	url, err := s.queue("")
	if err != nil {
		return "", err
	}
	if _, err := s.ask("send 4 %s", url); err != nil {
		return "", err
	}
	started := time.Now()
	p, err := push(ctx, s.config(url, map[string]string{"heartbeatSeconds": "1"}))
	if err != nil {
		return "", err
	}
	err = until(ctx, 15*time.Second, func() (bool, string) {
		seen, trues := p.since(started), 0
		for _, one := range seen {
			if one.active {
				trues++
			}
		}
		return trues >= 4, fmt.Sprintf("true came %d times, expected once a second%s", trues, p.complaints())
	})
	return "", err
}

func streamMetricSpec(ctx context.Context, s *session) (string, error) {
	url, err := s.queue("")
	if err != nil {
		return "", err
	}
	started := time.Now()
	p, err := push(ctx, s.config(url, nil))
	if err != nil {
		return "", err
	}
	// KEDA 2.21's interface; named here by its method so that older versions compile.
	streamer, ok := p.scaler.(interface{ MetricSpecChan() <-chan []v2.MetricSpec })
	if !ok {
		return "", skip("this KEDA has no StreamMetricSpec")
	}
	select {
	case specs, open := <-streamer.MetricSpecChan():
		if open {
			return "", fmt.Errorf("KEDA got %d specs from a stream that is off by default", len(specs))
		}
	case <-time.After(5 * time.Second):
		return "", errors.New("KEDA still waits on StreamMetricSpec, expected it to give up at UNIMPLEMENTED")
	}
	if _, err := p.waitFor(ctx, started, false, 5*time.Second); err != nil { // StreamIsActive goes on
		return "", err
	}
	if complaints := p.complaints(); complaints != "" {
		return "", errors.New(strings.TrimPrefix(complaints, "; "))
	}
	_, err = spec(ctx, p.config, p.scaler)
	return "", err
}

func crowdOfPushScalers(ctx context.Context, s *session) (string, error) {
	const crowd = 200
	url, err := s.queue("")
	if err != nil {
		return "", err
	}
	started := time.Now()
	all := make([]*pushed, 0, crowd)
	for i := range crowd {
		config := s.config(url, nil)
		config.ScalableObjectName = s.object(fmt.Sprint(i))
		p, err := push(ctx, config)
		if err != nil {
			return "", err
		}
		all = append(all, p)
	}
	for i, p := range all {
		if _, err := p.waitFor(ctx, started, false, 20*time.Second); err != nil {
			return "", fmt.Errorf("scaler %d of %d, state at open: %w", i, crowd, err)
		}
	}
	sent := time.Now()
	if _, err := s.ask("send 4 %s", url); err != nil {
		return "", err
	}
	slowest := time.Duration(0)
	for i, p := range all {
		took, err := p.waitFor(ctx, sent, true, 20*time.Second)
		if err != nil {
			return "", fmt.Errorf("scaler %d of %d: %w", i, crowd, err)
		}
		slowest = max(slowest, took)
	}
	return fmt.Sprintf("the last one %.2f s after the message", slowest.Seconds()), nil
}

// streamEnds is what KEDA logged about ends of StreamIsActive: how many were clean (OK, which Go calls EOF), and the
// errors of the others.
func (p *pushed) streamEnds() (clean int, broken []error) {
	retries := 0
	for _, one := range recorded.about(p.config, p.mark) {
		switch {
		case errors.Is(one.err, io.EOF): // KEDA 2.16 logs an end in order as an error, too
			clean++
		case one.err != nil && (strings.Contains(one.message, "StreamIsActive") || strings.Contains(one.message, "internalRun")):
			broken = append(broken, one.err)
		case strings.HasPrefix(one.message, "StreamIsActive retry backoff"): // 2.21 logs this after either kind of end
			retries++
		}
	}
	return max(clean, retries-len(broken)), broken
}

func streamsEndCleanly(ctx context.Context, s *session) (string, error) {
	url, err := s.queue("")
	if err != nil {
		return "", err
	}
	if _, err := s.ask("send 4 %s", url); err != nil {
		return "", err
	}
	// No heartbeat in between: what comes after the end comes from the new stream's opening.
	config := s.config(url, map[string]string{"heartbeatSeconds": "3600"})
	started := time.Now()
	p, err := push(ctx, config)
	if err != nil {
		return "", err
	}
	if _, err := p.waitFor(ctx, started, true, 15*time.Second); err != nil {
		return "", err
	}
	before := len(p.since(started))
	var life time.Duration
	err = until(ctx, 45*time.Second, func() (bool, string) {
		clean, broken := p.streamEnds()
		life = time.Since(started)
		return clean > 0 || len(broken) > 0, "the stream was never ended; the run needs a short maximum connection age"
	})
	if err != nil {
		return "", err
	}
	ended := time.Now()
	if _, broken := p.streamEnds(); len(broken) > 0 {
		return "", fmt.Errorf("the stream broke instead of ending with OK: %w", broken[0])
	}
	took, err := p.waitFor(ctx, ended, true, 6*time.Second)
	if err != nil {
		return "", fmt.Errorf("state on the stream's return: %w", err)
	}
	return fmt.Sprintf("ended after %.0f s, %d messages by then, true again %.1f s later", life.Seconds(), before, took.Seconds()), nil
}

func serverRestart(ctx context.Context, s *session) (string, error) {
	url, err := s.queue("")
	if err != nil {
		return "", err
	}
	if _, err := s.ask("send 4 %s", url); err != nil {
		return "", err
	}
	config := s.config(url, map[string]string{"heartbeatSeconds": "3600"})
	started := time.Now()
	p, err := push(ctx, config)
	if err != nil {
		return "", err
	}
	scaler, err := polled(ctx, config) // the same trigger: another one would take its place in the service
	if err != nil {
		return "", err
	}
	if _, err := p.waitFor(ctx, started, true, 15*time.Second); err != nil {
		return "", err
	}
	stopped := time.Now()
	if _, err := s.ask("stop service"); err != nil { // SIGTERM: in-flight calls finish, streams end with OK
		return "", err
	}
	drain := time.Since(stopped)
	defer func() { _, _ = s.ask("start service") }() // for the checks that follow, whatever happens here
	err = until(ctx, 10*time.Second, func() (bool, string) {
		clean, broken := p.streamEnds()
		return clean > 0 || len(broken) > 0, "KEDA did not notice that the stream ended"
	})
	if err != nil {
		return "", err
	}
	if clean, broken := p.streamEnds(); clean == 0 {
		return "", fmt.Errorf("the stream broke instead of ending with OK: %w", broken[0])
	}
	_, _, err = scaler.GetMetricsAndActivity(ctx, "s0-target-sqs-whatever")
	if err := refused(err, "Unavailable"); err != nil {
		return "", fmt.Errorf("with the server gone KEDA got %w", err)
	}
	if _, err := s.ask("start service"); err != nil {
		return "", err
	}
	back := time.Now()
	if err := pollUntil(ctx, config, scaler, reading{4, true}); err != nil {
		return "", err
	}
	polledAfter := time.Since(back)
	pushedAfter, err := p.waitFor(ctx, back, true, 20*time.Second)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("drained in %.1f s; after the start the poll works %.1f s and push %.1f s later",
		drain.Seconds(), polledAfter.Seconds(), pushedAfter.Seconds()), nil
}

func brokerOutage(ctx context.Context, s *session) (string, error) {
	const holdSeconds = 4
	url, err := s.queue("")
	if err != nil {
		return "", err
	}
	if _, err := s.ask("send 4 %s", url); err != nil {
		return "", err
	}
	config := s.config(url, map[string]string{"holdSeconds": fmt.Sprint(holdSeconds), "heartbeatSeconds": "2"})
	started := time.Now()
	p, err := push(ctx, config)
	if err != nil {
		return "", err
	}
	if _, err := p.waitFor(ctx, started, true, 15*time.Second); err != nil {
		return "", err
	}
	if err := pollUntil(ctx, config, p.scaler, reading{4, true}); err != nil {
		return "", err
	}
	if _, err := s.ask("stop source"); err != nil {
		return "", err
	}
	gone := time.Now()
	defer func() { _, _ = s.ask("start source") }() // for the checks that follow, whatever happens here
	held := 0
	var failed error
	err = until(ctx, 30*time.Second, func() (bool, string) {
		var seen reading
		seen, failed = poll(ctx, config, p.scaler)
		if failed == nil {
			held++
		}
		if failed == nil && (seen != reading{4, true}) {
			failed = fmt.Errorf("KEDA sees %s while the broker is gone", seen)
		}
		return failed != nil, fmt.Sprintf("KEDA still sees %s, holdSeconds is %d", seen, holdSeconds)
	})
	if err != nil {
		return "", err
	}
	took := time.Since(gone)
	if err := refused(failed, "Unavailable"); err != nil {
		return "", err
	}
	if held == 0 {
		return "", errors.New("the first poll after the outage already failed, expected the last decision to hold")
	}
	// KEDA's activity clock is kept fresh by repeated trues while the metric fails.
	if _, err := p.waitFor(ctx, time.Now(), true, 30*time.Second); err != nil {
		return "", fmt.Errorf("after the metric failed: %w", err)
	}
	for _, one := range p.since(gone) {
		if !one.active {
			return "", errors.New("push said false during the outage")
		}
	}
	return fmt.Sprintf("held for %.1f s, then %s", took.Seconds(), told(failed)), nil
}

// overTLS is a trigger that reaches the scaler's TLS port with KEDA's client certificate.
//
// `host` differs from check to check: KEDA before 2.17 keeps one connection per address, whatever its certificates.
func (s *session) overTLS(url, host string) *scalersconfig.ScalerConfig {
	config := s.config(url, map[string]string{"scalerAddress": host + s.tlsAddress})
	config.AuthParams = map[string]string{
		"caCert": readFile(s.caFile), "tlsClientCert": readFile(s.certFile), "tlsClientKey": readFile(s.keyFile),
	}
	return config
}

func mutualTLS(ctx context.Context, s *session) (string, error) {
	if s.tlsAddress == "" {
		return "", skip("no TLS address was given")
	}
	url, err := s.queue("")
	if err != nil {
		return "", err
	}
	if _, err := s.ask("send 2 %s", url); err != nil {
		return "", err
	}
	config := s.overTLS(url, "")
	scaler, err := polled(ctx, config)
	if err != nil {
		return "", err
	}
	if err := pollUntil(ctx, config, scaler, reading{2, true}); err != nil {
		return "", err
	}
	started := time.Now()
	p, err := push(ctx, s.overTLS(url, ""))
	if err != nil {
		return "", err
	}
	_, err = p.waitFor(ctx, started, true, 15*time.Second)
	return "", err
}

func mutualTLSRefused(ctx context.Context, s *session) (string, error) {
	if s.tlsAddress == "" {
		return "", skip("no TLS address was given")
	}
	url, err := s.queue("")
	if err != nil {
		return "", err
	}
	plain := s.overTLS(url, "dns:")
	plain.AuthParams = map[string]string{}
	anonymous := s.overTLS(url, "dns:///")
	delete(anonymous.AuthParams, "tlsClientCert")
	delete(anonymous.AuthParams, "tlsClientKey")
	for what, config := range map[string]*scalersconfig.ScalerConfig{"plain text": plain, "no client certificate": anonymous} {
		if _, err := failingSpec(ctx, s, config, "Unavailable"); err != nil {
			return "", fmt.Errorf("%s: %w", what, err)
		}
	}
	return "", nil
}

func certificateOfAnotherNamespace(ctx context.Context, s *session) (string, error) {
	if s.tlsAddress == "" {
		return "", skip("no TLS address was given")
	}
	url, err := s.queue("")
	if err != nil {
		return "", err
	}
	config := s.overTLS(url, "")
	config.ScalableObjectNamespace = "elsewhere"
	return failingSpec(ctx, s, config, "PermissionDenied")
}
