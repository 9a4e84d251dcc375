//! Prometheus metrics.

use std::time::Duration;

use prometheus::{
    Encoder, Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec,
    Opts, Registry, TextEncoder,
};
use smb_parse::header::Command;
use understudy_core::{
    effect::CloseReason,
    event::{Phase, Protection, Replay, SessionLoss, SideChannelFailure, TakeoverReport},
    fleet::What,
    link::Counters,
};

/// Everything that is measured.
pub(crate) struct Metrics {
    registry: Registry,
    pub(crate) connections: IntGauge,
    pub(crate) connections_total: IntCounter,
    bytes: IntCounterVec,
    pub(crate) bytes_from_client: IntCounter,
    pub(crate) bytes_to_client: IntCounter,
    requests_seen: Vec<IntCounter>,
    responses_seen: Vec<IntCounter>,
    sealed: IntCounter,
    pub(crate) not_understood: IntCounter,
    pub(crate) signature_refused: IntCounter,
    pub(crate) sessions: IntGaugeVec,
    pub(crate) unprotected_total: IntCounterVec,
    pub(crate) sessions_lost: IntCounterVec,
    takeovers: IntCounterVec,
    phases: HistogramVec,
    opens: IntCounterVec,
    requests: IntCounterVec,
    replays: IntCounterVec,
    pub(crate) closed: IntCounterVec,
    pub(crate) leg_losses: IntCounterVec,
    pub(crate) node_health: IntGaugeVec,
    pub(crate) node_active: IntGaugeVec,
    pub(crate) node_dirty: IntGaugeVec,
    pub(crate) node_differences: IntGaugeVec,
    pub(crate) side_channels: IntGauge,
    side_channel_answers: IntCounter,
    pub(crate) side_channel_failures: IntCounterVec,
    pub(crate) stuck_links: IntGauge,
    pub(crate) fences: IntCounterVec,
    pub(crate) store_errors: IntCounter,
    pub(crate) store_up: IntGauge,
    store_commits: Histogram,
    stored: IntCounter,
    pub(crate) absent_opens: IntGauge,
    pub(crate) open_files: IntGauge,
    pub(crate) unreclaimed: IntGauge,
    pub(crate) epoch: Gauge,
    pub(crate) leads: IntGauge,
    pub(crate) standbys: IntGauge,
}

impl Metrics {
    /// A commit of so many changes.
    pub(crate) fn stored(&self, took: Duration, changes: usize) {
        self.store_commits.observe(took.as_secs_f64());
        self.stored.inc_by(changes as u64);
    }

    /// A node is gone, and with it what is said of it.
    pub(crate) fn forget_node(&self, name: &str) {
        // An error means that nothing was said of it.
        for gauges in [&self.node_health, &self.node_active, &self.node_dirty] {
            let _ = gauges.remove_label_values(&[name]);
        }
        for what in What::all() {
            let _ = self.node_differences.remove_label_values(&[name, what.label()]);
        }
        for how in ["closed", "refused", "silent"] {
            let _ = self.leg_losses.remove_label_values(&[name, how]);
        }
    }

    /// Registers everything, so that every series is there from the start.
    pub(crate) fn new() -> prometheus::Result<Self> {
        let registry = Registry::new();
        let r = &registry;
        let bytes = counters(r, "bytes_total", "Bytes of the client legs", &["direction"])?;
        let messages =
            counters(r, "messages_total", "SMB2 messages on the client legs", &["command", "direction"])?;
        let metrics = Self {
            connections: gauge(r, "connections", "Client connections")?,
            connections_total: counter(r, "connections_total", "Client connections accepted")?,
            bytes_from_client: bytes.with_label_values(&["from_client"]),
            bytes_to_client: bytes.with_label_values(&["to_client"]),
            bytes,
            requests_seen: by_command(&messages, "request"),
            responses_seen: by_command(&messages, "response"),
            sealed: counter(r, "sealed_frames_total", "Encrypted frames passed on unread")?,
            not_understood: counter(r, "not_understood_total", "Frames passed on without being understood")?,
            signature_refused: counter(
                r,
                "signatures_refused_total",
                "Messages refused for a missing or wrong signature",
            )?,
            sessions: gauges(
                r,
                "sessions",
                "Sessions by protection; guest, anonymous, ntlm and kerberos survive a node",
                &["protection"],
            )?,
            unprotected_total: counters(
                r,
                "unprotected_sessions_total",
                "Sessions that would not survive a node, by reason",
                &["reason"],
            )?,
            sessions_lost: counters(
                r,
                "sessions_lost_total",
                "Sessions that ended with their node, by reason",
                &["reason"],
            )?,
            takeovers: counters(
                r,
                "takeovers_total",
                "Takeovers of one connection each",
                &["result", "cause"],
            )?,
            phases: phase_histogram(r)?,
            opens: counters(r, "takeover_opens_total", "Opens in takeovers", &["result"])?,
            requests: counters(r, "takeover_requests_total", "Requests in flight in takeovers", &["result"])?,
            replays: counters(
                r,
                "replays_total",
                "What became of requests in flight, by kind and by what was known of them",
                &["request", "known", "verdict"],
            )?,
            closed: counters(r, "client_closed_total", "Client connections ended, by reason", &["reason"])?,
            leg_losses: counters(r, "leg_losses_total", "Node connections lost", &["node", "how"])?,
            node_health: gauges(r, "node_up", "1 while the node answers", &["node"])?,
            node_active: gauges(r, "node_active", "1 for the node that serves", &["node"])?,
            node_dirty: gauges(
                r,
                "node_dirty",
                "1 while a node that was left unfenced is not eligible",
                &["node"],
            )?,
            node_differences: gauges(
                r,
                "node_differences",
                "In what a node differs from the serving one; 2 where clients would break, 1 where not",
                &["node", "what"],
            )?,
            side_channels: gauge(r, "side_channels", "Second connections in clients' own sessions")?,
            side_channel_answers: counter(
                r,
                "side_channel_answers_total",
                "What was learned of open files on side channels",
            )?,
            side_channel_failures: counters(
                r,
                "side_channel_failures_total",
                "Side channels that could not be had or were lost, by reason",
                &["reason"],
            )?,
            stuck_links: gauge(
                r,
                "stuck_links",
                "Clients whose process on the node does not answer, although the node does",
            )?,
            fences: counters(r, "fences_total", "Runs of the fence", &["result"])?,
            store_errors: counter(r, "store_errors_total", "Changes the store did not take")?,
            store_up: gauge(r, "store_up", "1 while the store takes what is to be stored")?,
            store_commits: commit_histogram(r)?,
            stored: counter(r, "stored_records_total", "Records written to the store, or removed from it")?,
            absent_opens: gauge(r, "absent_opens", "Opens whose clients are away, and may come back")?,
            open_files: gauge(r, "opens", "Opens that are recorded")?,
            unreclaimed: gauge(r, "opens_unreclaimed", "Opens that are not back on the serving node yet")?,
            epoch: {
                let gauge = Gauge::new("understudy_epoch", "Grows with every change of the serving node")?;
                r.register(Box::new(gauge.clone()))?;
                gauge
            },
            leads: gauge(r, "leads", "1 while this proxy serves, 0 while it stands by")?,
            standbys: gauge(r, "standbys", "Proxies that stand by and ask this one for heartbeats")?,
            registry: registry.clone(),
        };
        metrics.preset();
        Ok(metrics)
    }

    fn preset(&self) {
        for protection in Protection::ALL {
            self.sessions.with_label_values(&[protection.label()]).set(0);
            if !protection.is_protected() {
                self.unprotected_total.with_label_values(&[protection.label()]).inc_by(0);
            }
        }
        for loss in SessionLoss::ALL {
            self.sessions_lost.with_label_values(&[loss.label()]).inc_by(0);
        }
        for reason in SideChannelFailure::ALL {
            self.side_channel_failures.with_label_values(&[reason.label()]).inc_by(0);
        }
        for reason in CloseReason::ALL {
            self.closed.with_label_values(&[reason.label()]).inc_by(0);
        }
        for (result, cause) in
            [("ok", "crash"), ("failed", "crash"), ("ok", "silence"), ("failed", "silence")]
        {
            self.takeovers.with_label_values(&[result, cause]).inc_by(0);
        }
        for result in ["ok", "failed"] {
            self.fences.with_label_values(&[result]).inc_by(0);
        }
        let _ = &self.bytes;
    }

    /// Takes a Link's counters in.
    pub(crate) fn count(&self, counters: &Counters) {
        for (seen, counts) in
            [(&self.requests_seen, &counters.requests), (&self.responses_seen, &counters.responses)]
        {
            for (counter, count) in seen.iter().zip(counts).filter(|(_, count)| **count > 0) {
                counter.inc_by(*count);
            }
        }
        self.sealed.inc_by(counters.sealed);
        self.side_channel_answers.inc_by(counters.aside);
    }

    /// Takes in what became of a request in flight.
    pub(crate) fn replay(&self, row: Replay) {
        self.replays.with_label_values(&[row.request, row.known, row.verdict]).inc();
    }

    /// Takes the end of a takeover in.
    pub(crate) fn takeover(&self, report: &TakeoverReport) {
        let result = if report.failed.is_none() { "ok" } else { "failed" };
        self.takeovers.with_label_values(&[result, report.cause.label()]).inc();
        self.opens.with_label_values(&["reclaimed"]).inc_by(u64::from(report.opens_reclaimed));
        self.opens.with_label_values(&["kept"]).inc_by(u64::from(report.opens_kept));
        self.opens.with_label_values(&["lost"]).inc_by(u64::from(report.opens_lost));
        self.requests.with_label_values(&["replayed"]).inc_by(u64::from(report.replayed));
        self.requests.with_label_values(&["failed"]).inc_by(u64::from(report.failed_requests));
        for (phase, took) in &report.phases {
            self.phases.with_label_values(&[phase.label()]).observe(took.as_secs_f64());
        }
    }

    /// The page.
    pub(crate) fn render(&self) -> Result<String, prometheus::Error> {
        let mut out = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut out)?;
        Ok(String::from_utf8_lossy(&out).into_owned())
    }
}

/// The counters of one direction, by the command's value; the last one is for unknown commands.
fn by_command(messages: &IntCounterVec, direction: &str) -> Vec<IntCounter> {
    let commands = (0..).map(Command).take(Command::COUNT + 1);
    commands.map(|command| messages.with_label_values(&[command.name(), direction])).collect()
}

fn name(short: &str) -> String {
    format!("understudy_{short}")
}

fn counter(r: &Registry, short: &str, help: &str) -> prometheus::Result<IntCounter> {
    let metric = IntCounter::new(name(short), help)?;
    r.register(Box::new(metric.clone()))?;
    Ok(metric)
}

fn gauge(r: &Registry, short: &str, help: &str) -> prometheus::Result<IntGauge> {
    let metric = IntGauge::new(name(short), help)?;
    r.register(Box::new(metric.clone()))?;
    Ok(metric)
}

fn counters(r: &Registry, short: &str, help: &str, labels: &[&str]) -> prometheus::Result<IntCounterVec> {
    let metric = IntCounterVec::new(Opts::new(name(short), help), labels)?;
    r.register(Box::new(metric.clone()))?;
    Ok(metric)
}

fn gauges(r: &Registry, short: &str, help: &str, labels: &[&str]) -> prometheus::Result<IntGaugeVec> {
    let metric = IntGaugeVec::new(Opts::new(name(short), help), labels)?;
    r.register(Box::new(metric.clone()))?;
    Ok(metric)
}

fn commit_histogram(r: &Registry) -> prometheus::Result<Histogram> {
    let buckets = vec![0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0];
    let opts = HistogramOpts::new(name("store_commit_seconds"), "How long each commit to the store took")
        .buckets(buckets);
    let metric = Histogram::with_opts(opts)?;
    r.register(Box::new(metric.clone()))?;
    Ok(metric)
}

fn phase_histogram(r: &Registry) -> prometheus::Result<HistogramVec> {
    let buckets = vec![0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 60.0];
    let opts = HistogramOpts::new(name("takeover_phase_seconds"), "How long each phase of a takeover took")
        .buckets(buckets);
    let metric = HistogramVec::new(opts, &["phase"])?;
    for phase in Phase::ALL {
        metric.with_label_values(&[phase.label()]);
    }
    r.register(Box::new(metric.clone()))?;
    Ok(metric)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_names_every_reason_before_anything_happened() {
        let page = Metrics::new().unwrap().render().unwrap();
        for reason in CloseReason::ALL {
            assert!(
                page.contains(&format!("understudy_client_closed_total{{reason=\"{}\"}} 0", reason.label())),
                "{page}"
            );
        }
        assert!(page.contains("understudy_sessions{protection=\"ntlm\"} 0"));
    }

    #[test]
    fn the_readme_names_every_series() {
        let readme = include_str!("../../README.md");
        let metrics = Metrics::new().unwrap();
        metrics.leg_losses.with_label_values(&["a", "b"]).inc();
        for one in [&metrics.opens, &metrics.requests] {
            one.with_label_values(&["a"]).inc();
        }
        for one in [&metrics.node_health, &metrics.node_active, &metrics.node_dirty] {
            one.with_label_values(&["a"]).set(1);
        }
        metrics.node_differences.with_label_values(&["a", "b"]).set(1);
        for family in metrics.registry.gather() {
            let short = family.name().trim_start_matches("understudy_");
            assert!(readme.contains(&format!("`{short}")), "{short}");
        }
    }
}
