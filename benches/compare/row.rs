//! A row of the comparison: one figure of one test, of every peer.

/// The medians of a figure, in the order of the peers.
pub struct Row {
    pub test: &'static str,
    /// What was measured, and in which unit.
    pub figure: &'static str,
    /// More is better; else less.
    pub more_is_better: bool,
    /// `None` for a peer that cannot do it.
    pub medians: Vec<Option<f64>>,
}

/// What stands for no proxy at all, which is no peer of anybody.
pub const DIRECT: &str = "direct";
pub const OURS: &str = "realpeer";

impl Row {
    /// realpeer's figure divided by the best of the other proxies.
    pub fn ratio(&self, names: &[&str]) -> Option<f64> {
        let at = names.iter().position(|name| *name == OURS)?;
        Some(self.medians[at]? / self.best(names)?)
    }

    /// The best of the proxies besides realpeer.
    fn best(&self, names: &[&str]) -> Option<f64> {
        let others = names.iter().zip(&self.medians);
        let others = others.filter(|(name, _)| ![DIRECT, OURS].contains(name));
        let better = if self.more_is_better {
            f64::max
        } else {
            f64::min
        };
        others.filter_map(|(_, median)| *median).reduce(better)
    }

    /// Whether realpeer is behind by more than rounding.
    pub fn loses(&self, names: &[&str]) -> bool {
        self.ratio(names).is_some_and(|ratio| {
            if self.more_is_better {
                ratio < 0.995
            } else {
                ratio >= 1.005
            }
        })
    }
}

/// Three digits that count.
pub fn cell(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}
