//! Why the proxy may not serve clients now.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::picture::label;
use crate::listeners::Listeners;
use crate::namespaces::here;

/// A target that could not be reached longer ago may be back: without clients nobody would know, and
/// who asks may keep clients away for that.
const RECENT: Duration = Duration::from_secs(60);

/// What is in the way, one sentence each; nothing if all is well.
pub async fn reasons(listeners: &Listeners) -> Vec<String> {
    let mut reasons = Vec::new();
    if listeners.proxy.draining.load(Ordering::Relaxed) {
        reasons.push("realpeer is stopping: open sessions are finished".to_owned());
    }
    for (service, accepting) in listeners.services().await {
        let label = label(&service);
        if !accepting {
            reasons.push(format!("listener {label} is drained"));
        }
        let unreachable = service.record.unreachable(service.config.protocol);
        if let Some(last) = unreachable.filter(|last| last.at.elapsed() < RECENT) {
            let (target, why) = (last.target, last.why);
            reasons.push(format!("listener {label}: the target {target} {why}"));
        }
    }
    let targets = listeners.config().await.route_targets();
    reasons.extend(listeners.routing().missing(&here(&targets)).await);
    reasons.extend(listeners.namespaces().missing());
    reasons
}
