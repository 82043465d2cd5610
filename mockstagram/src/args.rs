//! The command line. Every flag can be given by environment too; a flag wins.

use std::net::{SocketAddr, ToSocketAddrs};

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};

use crate::settings::Settings;

const EXAMPLES: &str = "\
Examples:
  mockstagram --seed 42
      on 127.0.0.1:3000; pk 1000000 to 1999999; the same counts for the same pk on every run
  mockstagram --http 127.0.0.1:0
      on a free port, which the first line on standard output names: listening on http://127.0.0.1:PORT
  mockstagram --error-rate 0.05 --malformed-rate 0.01 --latency log-normal --latency-ms 20 --latency-sigma 0.5
      5% of status 500, 1% of bodies that do not parse, and half of the answers later than 20 ms
  curl -X PUT localhost:3000/admin/settings -d '{\"error_rate\": 1}'
      from now on nothing but status 500; other settings stay
  curl localhost:3000/admin/requests
      how many requests there were, and how they ended

Exit codes: 0 stopped by SIGINT or SIGTERM, 1 failure, 2 wrong usage.";

/// A fast stand-in for the upstream API, with faults on demand
#[derive(Debug, Parser)]
#[command(name = "mockstagram", version, after_help = EXAMPLES)]
pub struct Args {
    /// Address and port to listen on; port 0 takes a free one
    #[arg(long, value_name = "ADDR", env = "MOCKSTAGRAM_HTTP", default_value = "127.0.0.1:3000", value_parser = address)]
    pub http: SocketAddr,

    /// Makes every count, fault and delay reproducible [default: drawn at random, and printed]
    #[arg(long, value_name = "N", env = "MOCKSTAGRAM_SEED")]
    pub seed: Option<u64>,

    /// How many influencers there are
    #[arg(long, value_name = "N", env = "MOCKSTAGRAM_INFLUENCERS", default_value_t = 1_000_000,
          value_parser = clap::value_parser!(u32).range(1..=100_000_000))]
    pub influencers: u32,

    /// The first influencer's pk
    #[arg(long, value_name = "PK", env = "MOCKSTAGRAM_FIRST_PK", default_value_t = 1_000_000,
          value_parser = clap::value_parser!(u64).range(0..=1_000_000_000_000))]
    pub first_pk: u64,

    /// Threads that serve; one needs the least CPU per request
    #[arg(long, value_name = "N", env = "MOCKSTAGRAM_THREADS", default_value_t = 1,
          value_parser = threads)]
    pub threads: usize,

    /// Stop when standard input is closed: for a parent that must not leave us behind
    #[arg(long, hide = true)]
    pub until_stdin_closes: bool,

    #[command(flatten, next_help_heading = "Settings, which can be changed while it runs")]
    pub settings: Settings,
}

impl Args {
    /// Reads the process's arguments and environment. Wrong usage ends the process with exit code 2.
    pub fn read() -> Self {
        let args = Self::parse();
        if let Err(error) = args.settings.check() {
            Self::command().error(ErrorKind::ValueValidation, error).exit();
        }
        args
    }
}

fn address(text: &str) -> Result<SocketAddr, String> {
    let mut found = text
        .to_socket_addrs()
        .map_err(|error| format!("{error}; give an address and a port, such as 127.0.0.1:3000"))?;
    found.next().ok_or_else(|| "the name has no address".to_owned())
}

fn threads(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(threads @ 1..=64) => Ok(threads),
        _ => Err("give a number from 1 to 64".to_owned()),
    }
}
