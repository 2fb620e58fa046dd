//! Ten hand-overs in a row under load: nobody is refused, nothing is lost.

mod support;

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use support::datagrams::{every, open};
use support::header::v1;
use support::site::{listener, udp};
use support::stage::VISITED;
use support::streams::{receive, send};
use support::{Host, Lineage, addr, vitals, wait_until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const AT: &str = "192.0.2.10:2201";
const NINE: &str = "127.0.0.1:9000";
const ROUNDS: usize = 10;
const SESSIONS: usize = 1000;
const CLIENTS: usize = 8;
const FLOWS: u16 = 4;

#[test]
fn ten_in_a_row_under_load_cost_no_connection_and_no_datagram() {
    vitals::allow_many_descriptors();
    let lineage = Lineage::new(
        &(listener("a", "0.0.0.0:2201", NINE, "listeners = 2")
            + &udp("u", "0.0.0.0:2201", NINE, "listeners = 2")),
    );
    echo(&lineage.server);
    let udp_backend = open(&lineage.server, NINE);
    let sessions: Vec<TcpStream> = lineage.balancer.enter(|| {
        let all = 0..SESSIONS;
        all.map(|n| session(&format!("203.0.113.{}:{}", n % 200, 10_000 + n)))
            .collect()
    });
    let rules = lineage.rules();
    let (done, served) = (AtomicBool::new(false), AtomicUsize::new(0));
    let going = || !done.load(Ordering::Relaxed);
    let (sent, came) = thread::scope(|scope| {
        for client in 0..CLIENTS {
            let (balancer, served) = (&lineage.balancer, &served);
            scope.spawn(move || balancer.enter(|| short_ones(client, &going, served)));
        }
        let datagrams = scope.spawn(|| send_numbers(&lineage.balancer, &going));
        let collected = scope.spawn(|| collect(&udp_backend, &going));
        scope.spawn(|| {
            while going() {
                assert_eq!(lineage.rules(), rules);
            }
        });
        scope.spawn(|| {
            while going() {
                assert_eq!(
                    lineage.ctl.run("bans").code,
                    0,
                    "the control socket answers"
                );
            }
        });
        let upgrades = scope.spawn(|| {
            for round in 0..ROUNDS {
                let before = served.load(Ordering::Relaxed);
                lineage.upgrade();
                wait_until("the new one serves", || {
                    served.load(Ordering::Relaxed) > before + CLIENTS
                });
                let some = sessions.iter().skip(round).step_by(ROUNDS);
                some.for_each(assert_echoes);
            }
        });
        let upgraded = upgrades.join();
        done.store(true, Ordering::Relaxed);
        upgraded.expect("the upgrades go well");
        (
            datagrams.join().expect("they are sent"),
            collected.join().expect("they are received"),
        )
    });
    sessions.iter().for_each(assert_echoes);
    let clients: Vec<SocketAddr> = came.keys().copied().collect();
    assert_eq!(came.len(), FLOWS as usize, "one socket a flow: {clients:?}");
    for (client, numbers) in came {
        assert!(numbers.is_sorted(), "{client}: out of order");
        assert_eq!(numbers, (0..sent).collect::<Vec<_>>(), "{client}");
    }
}

/// A backend for many.
fn echo(server: &Host) {
    let listener = server.enter(|| TcpListener::bind(addr(NINE)).expect("bind"));
    listener.set_nonblocking(true).expect("non-blocking");
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::from_std(listener).expect("register");
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let mut bytes = [0; 64];
                    while let Ok(count @ 1..) = stream.read(&mut bytes).await {
                        if stream.write_all(&bytes[..count]).await.is_err() {
                            return;
                        }
                    }
                });
            }
        });
    });
}

/// Called on the balancer.
fn session(client: &str) -> TcpStream {
    let stream = TcpStream::connect(addr(AT)).unwrap_or_else(|e| panic!("{client}: {e}"));
    let stream = support::streams::with_deadline(stream);
    send(&stream, v1(client, VISITED));
    stream
}

fn assert_echoes(stream: &TcpStream) {
    send(stream, b"still there?");
    assert_eq!(receive(stream, 12), b"still there?");
}

fn short_ones(client: usize, going: &impl Fn() -> bool, served: &AtomicUsize) {
    for n in 0.. {
        if !going() {
            return;
        }
        let from = format!("203.0.114.{client}:{}", 1024 + n % 60_000);
        let mut stream = session(&from);
        let mut answer = [0; 4];
        let carried = stream
            .write_all(b"ping")
            .and_then(|()| stream.read_exact(&mut answer));
        carried.unwrap_or_else(|e| panic!("{from}: {e}"));
        served.fetch_add(1, Ordering::Relaxed);
    }
}

/// Numbers, one a millisecond to each flow; tells how many.
fn send_numbers(balancer: &Host, going: &impl Fn() -> bool) -> u32 {
    let near = open(balancer, "0.0.0.0:0");
    near.connect(addr(AT)).expect("connect");
    let mut number = 0_u32;
    while going() {
        for flow in 0..FLOWS {
            let client = format!("203.0.115.{flow}:{}", 5000 + flow);
            near.send(&every(&client, &number.to_be_bytes()))
                .expect("send");
        }
        number += 1;
        thread::sleep(Duration::from_millis(1));
    }
    number
}

/// What comes, by client, until nothing comes any more.
fn collect(backend: &UdpSocket, going: &impl Fn() -> bool) -> HashMap<SocketAddr, Vec<u32>> {
    backend
        .set_read_timeout(Some(Duration::from_millis(500)))
        .expect("set a time-out");
    let mut all: HashMap<SocketAddr, Vec<u32>> = HashMap::new();
    loop {
        let mut bytes = [0; 64];
        match backend.recv_from(&mut bytes) {
            Ok((4, from)) => {
                let number = [bytes[0], bytes[1], bytes[2], bytes[3]];
                all.entry(from)
                    .or_default()
                    .push(u32::from_be_bytes(number));
            }
            Ok((length, from)) => panic!("{length} bytes from {from}"),
            Err(_) if going() => {}
            Err(_) => return all,
        }
    }
}
