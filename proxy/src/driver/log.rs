//! What a Link's news look like in log and metrics.

use std::{net::SocketAddr, time::Duration};

use understudy_core::{
    effect::CloseReason,
    event::{Event, LegLoss, Phase, Protection, SessionLoss, SessionNews, SideChannelNews, TakeoverReport},
    ids::{LinkId, NodeId},
};

use crate::shared::Shared;

pub(super) fn leg_lost(shared: &Shared, link: LinkId, node: NodeId, loss: LegLoss) {
    let how = match loss {
        LegLoss::Closed => "closed",
        LegLoss::Refused => "refused",
        LegLoss::Silent => "silent",
    };
    let node = shared.node_name(node);
    shared.metrics.leg_losses.with_label_values(&[node.as_str(), how]).inc();
    tracing::debug!(link = link.0, node, how, "the connection to the node is lost");
}

pub(super) fn event(shared: &Shared, link: LinkId, client: SocketAddr, event: Event) {
    match event {
        Event::Session(news) => session(shared, link, client, &news),
        Event::SessionEnded(protection) => sessions(shared, protection).dec(),
        Event::SessionLost { user, loss } => session_lost(shared, link, client, &user, loss),
        Event::Replay(row) => shared.metrics.replay(row),
        Event::Takeover(report) => takeover(shared, link, client, &report),
        Event::Waiting(what) => tracing::warn!(link = link.0, %client, "waiting: {what}"),
        Event::SignatureRefused => {
            shared.metrics.signature_refused.inc();
            tracing::warn!(link = link.0, %client, "refused a message whose signature is missing or wrong");
        }
        Event::NotUnderstood => shared.metrics.not_understood.inc(),
        Event::SideChannel(news) => side_channel(shared, link, client, news),
        Event::Stuck(true) => {
            shared.metrics.stuck_links.inc();
            tracing::warn!(link = link.0, %client, "the node's process for this client does not answer, although the node does");
        }
        Event::Stuck(false) => {
            shared.metrics.stuck_links.dec();
            tracing::info!(link = link.0, %client, "the node's process for this client is not missed any more");
        }
        Event::File(_) | Event::LegLost { .. } | Event::Succession(_) => {}
    }
}

fn side_channel(shared: &Shared, link: LinkId, client: SocketAddr, news: SideChannelNews) {
    match news {
        SideChannelNews::Bound => shared.metrics.side_channels.inc(),
        SideChannelNews::Closed => shared.metrics.side_channels.dec(),
        SideChannelNews::Failed(why) => {
            let reason = why.label();
            shared.metrics.side_channel_failures.with_label_values(&[reason]).inc();
            tracing::debug!(link = link.0, %client, reason, "no side channel");
        }
    }
}

fn sessions(shared: &Shared, protection: Protection) -> prometheus::IntGauge {
    shared.metrics.sessions.with_label_values(&[protection.label()])
}

fn session(shared: &Shared, link: LinkId, client: SocketAddr, news: &SessionNews) {
    if let Some(was) = news.was {
        sessions(shared, was).dec();
    }
    sessions(shared, news.protection).inc();
    let (user, protection) = (&news.user, news.protection.label());
    if news.protection.is_protected() {
        tracing::debug!(link = link.0, %client, user, protection, "session established");
        return;
    }
    shared.metrics.unprotected_total.with_label_values(&[protection]).inc();
    let why = why_unprotected(news.protection);
    tracing::warn!(link = link.0, %client, user, protection, "session would not survive the loss of its node: {why}");
}

fn why_unprotected(protection: Protection) -> &'static str {
    match protection {
        Protection::NoUserUnknown => "the user is not in the smbpasswd file; add them (pdbedit -L -w)",
        Protection::NoCredentials => "no smbpasswd file is configured ([credentials] ntlm)",
        Protection::NoMechanism => "the login was neither NTLM nor Kerberos with a ticket for the service",
        Protection::NoKeytab => "it is by Kerberos, and no keytab is configured ([credentials] keytab)",
        Protection::NoServiceKey => {
            "the keytab has no key for the ticket; export it again from a node (`understudy check` shows what it has)"
        }
        Protection::NoTicketOpened => {
            "the keytab has the key that the ticket names, but it is not the right one; export it again from a node"
        }
        Protection::NoEncType => {
            "its ticket is of an encryption type that is not supported; let the service have AES keys"
        }
        Protection::NoClock => {
            "the clock of this machine and the client's differ by more than five minutes; set them right (NTP)"
        }
        Protection::NoTicketExpired => {
            "its ticket has expired by the clock of this machine: the client logs in with an old one, or the clock is wrong (NTP)"
        }
        Protection::NoKeyMismatch => {
            "the key that follows from the smbpasswd file or the keytab is not the one the node has; export it again"
        }
        Protection::NoLogin => "its login was not understood (NTLMv1?)",
        Protection::Guest | Protection::Anonymous | Protection::Ntlm | Protection::Kerberos => {
            "it is protected"
        }
    }
}

fn session_lost(shared: &Shared, link: LinkId, client: SocketAddr, user: &str, loss: SessionLoss) {
    let reason = loss.label();
    shared.metrics.sessions_lost.with_label_values(&[reason]).inc();
    let why = match loss {
        // Why was said when it was established.
        SessionLoss::Unprotected => "it was not protected",
        SessionLoss::TicketExpired => {
            "the ticket has expired, and only the user can get another one: the client must log in again"
        }
        SessionLoss::HashGone => "the user is no longer in the smbpasswd file",
        SessionLoss::Refused => {
            "the new node refused the login, or did not prove that it is one of the nodes"
        }
    };
    tracing::warn!(link = link.0, %client, user, reason, "a session ends with its node: {why}");
}

fn takeover(shared: &Shared, link: LinkId, client: SocketAddr, report: &TakeoverReport) {
    shared.metrics.takeover(report);
    let rounded = |took: Duration| (took.as_secs_f64() * 10_000.0).round() / 10.0;
    let ms = |phase: Phase| {
        report.phases.iter().find(|(p, _)| *p == phase).map_or(0.0, |(_, took)| rounded(*took))
    };
    let total = rounded(report.phases.iter().map(|(_, took)| *took).sum());
    let fields = [
        ("from", shared.node_name(report.from)),
        ("to", report.to.map_or_else(|| "none".into(), |node| shared.node_name(node))),
    ];
    let [(_, from), (_, to)] = &fields;
    let cause = report.cause.label();
    macro_rules! line {
        ($level:ident, $text:expr) => {
            tracing::$level!(
                link = link.0, %client, cause, from, to,
                sessions = report.sessions, sessions_lost = report.sessions_lost,
                opens_reclaimed = report.opens_reclaimed, opens_kept = report.opens_kept,
                opens_lost = report.opens_lost,
                replayed = report.replayed, failed_requests = report.failed_requests,
                total_ms = total,
                assign_ms = ms(Phase::Assign), connect_ms = ms(Phase::Connect),
                negotiate_ms = ms(Phase::Negotiate), authenticate_ms = ms(Phase::Authenticate),
                trees_ms = ms(Phase::Trees), reclaim_ms = ms(Phase::Reclaim), barrier_ms = ms(Phase::Barrier),
                "{}", $text
            )
        };
    }
    match report.failed {
        None => line!(info, "taken over"),
        Some(reason) => line!(warn, format!("takeover failed: {}", why_closed(reason))),
    }
}

pub(super) fn closed(link: LinkId, client: SocketAddr, reason: CloseReason) {
    let (label, why) = (reason.label(), why_closed(reason));
    match reason {
        CloseReason::ClientClosed => tracing::debug!(link = link.0, %client, reason = label, "{why}"),
        // The client's own doing, or the operator's: nobody has to get up.
        CloseReason::ProtocolError | CloseReason::Idle | CloseReason::NodeClosed | CloseReason::Shutdown => {
            tracing::info!(link = link.0, %client, reason = label, "disconnected: {why}");
        }
        _ => tracing::warn!(link = link.0, %client, reason = label, "disconnected: {why}"),
    }
}

fn why_closed(reason: CloseReason) -> &'static str {
    match reason {
        CloseReason::ClientClosed => "the client closed the connection",
        CloseReason::ProtocolError => "the client sent what no SMB client sends",
        CloseReason::SignatureInvalid => "a message that must be signed was not, or wrongly",
        CloseReason::NodeClosed => "the node closed a connection without a session",
        CloseReason::Unprotected => "the node is lost and no session of this client can be moved",
        CloseReason::LostInHandshake => {
            "the node was lost during negotiation or login; the client can connect again"
        }
        CloseReason::Deadline => "no node could serve within takeover_deadline",
        CloseReason::TooManyTakeovers => {
            "nodes keep closing this connection although they live; a request of it may be the cause"
        }
        CloseReason::TakeoverFailed => "no session could be established on the new node",
        CloseReason::Shutdown => "the proxy is stopping",
        CloseReason::StoreFailed => "what it was to be promised could not be stored",
        CloseReason::Idle => "the client was silent in the middle of a frame, or never spoke",
    }
}
