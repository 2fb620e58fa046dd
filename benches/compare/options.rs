//! The command line.

use std::path::PathBuf;

use clap::Parser;

use crate::tests::Test;

/// Measures realpeer beside its peers, or with --curve its cost as work grows.
#[derive(Debug, Parser)]
#[command(name = "cargo bench --bench compare --", disable_help_flag = false)]
pub struct Options {
    /// Tests, with commas between them
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "up,down,ping,ping1,ping16k,churn,idle,udp,udp1k,reload,upgrade"
    )]
    pub tests: Vec<Test>,

    /// Peers, with commas between them; those that are not installed are left out
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "direct,realpeer,go-mmproxy,other-go-mmproxy,mmproxy-rs,haproxy,nginx"
    )]
    pub peers: Vec<String>,

    /// How often each test is run for each peer; the table shows medians
    #[arg(long, default_value_t = 3)]
    pub rounds: usize,

    /// Seconds of load in a test
    #[arg(long, default_value_t = 3)]
    pub secs: u64,

    /// Also draw the table as a chart, into this file
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "examples/benchmark.svg")]
    pub svg: Option<PathBuf>,

    /// Instead: what realpeer costs at 1 to 9,000 connections, and with ever more UDP flows
    #[arg(long)]
    pub curve: bool,

    /// cargo says this to every benchmark.
    #[arg(long, hide = true)]
    bench: bool,
}
