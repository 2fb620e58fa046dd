//! What processes before this one add to an answer: their sessions, and what a kill or a ban ended
//! there.

use super::protocol::{End, Line, Older, Request};
use crate::bans;
use crate::handover::elders::{Elder, Elders};

/// The answer of this process, with those of the older ones.
pub async fn add(elders: &Elders, request: &Request, mut lines: Vec<Line>) -> Vec<Line> {
    if elders.are_gone() || !concerns(request, &lines) {
        return lines;
    }
    let Some(Line::End(mut end)) = lines.pop() else {
        return lines;
    };
    let mut silent = Vec::new();
    for (elder, answer) in elders.ask(&forwarded(request)).await {
        match answer {
            Some(answer) => merge(request, &elder, answer, &mut lines, &mut end),
            None => {
                if let Some(status) = &mut end.status {
                    status.older.push(older(&elder, None));
                }
                silent.push(elder.pid.to_string());
            }
        }
    }
    if !silent.is_empty() {
        let silent = format!("no answer from older process {}", silent.join(", "));
        end.warning = Some(match end.warning {
            Some(warning) => format!("{warning}; {silent}"),
            None => silent,
        });
    }
    if end.count.is_some() && matches!(request, Request::Connections { .. }) {
        end.count = Some(lines.len());
    }
    lines.push(Line::End(end));
    lines
}

/// Whether the older processes have to do with it. What was refused here is not done there; but a
/// session that is not here may be there.
fn concerns(request: &Request, lines: &[Line]) -> bool {
    let went_well = matches!(lines.last(), Some(Line::End(end)) if end.ok);
    match request {
        Request::Status {} | Request::Ban { .. } | Request::Unban { .. } => went_well,
        Request::Connections { .. } | Request::Kill { .. } => true,
        _ => false,
    }
}

/// As the older process is to hear it: whether somebody may be banned was asked here.
fn forwarded(request: &Request) -> Request {
    let mut request = request.clone();
    if let Request::Ban { force, .. } = &mut request {
        *force = true;
    }
    request
}

fn merge(
    request: &Request,
    elder: &Elder,
    mut answer: Vec<Line>,
    lines: &mut Vec<Line>,
    end: &mut End,
) {
    let Some(Line::End(theirs)) = answer.pop() else {
        return;
    };
    match request {
        Request::Status {} => {
            if let (Some(ours), Some(theirs)) = (&mut end.status, theirs.status) {
                ours.older.push(older(elder, Some(theirs.open)));
            }
        }
        Request::Connections { .. } => {
            for mut line in answer {
                if let Line::Connection { connection } = &mut line {
                    connection.pid = Some(elder.pid);
                }
                lines.push(line);
            }
            if theirs.ok {
                succeed(end);
                end.count = Some(lines.len());
            }
        }
        _ => {
            if let Some(killed) = theirs.killed {
                succeed(end);
                end.killed = Some(end.killed.unwrap_or(0) + killed);
            }
        }
    }
}

/// Here there was nothing, but there there was.
fn succeed(end: &mut End) {
    end.ok = true;
    end.error = None;
}

fn older(elder: &Elder, open: Option<usize>) -> Older {
    Older {
        pid: elder.pid,
        open,
        since: bans::now().saturating_sub(elder.since),
    }
}
