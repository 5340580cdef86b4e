//! Real etcd processes: a test's puts and faults go in, keys, leases and revisions come out.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use etcd_client::{Channel, Client, CompactionOptions, Error, GetOptions, LeaseStatus, StatusResponse};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tonic::transport::Endpoint;

use super::pki::{Authority, Files};
use super::process::{Child, Signal};
use super::proxy::Proxy;
use super::{LIMIT, POLL_INTERVAL, eventually, init_tracing};

/// One etcd process with its own folder and ports: alone, or a member of a [`Cluster`].
///
/// The program is what the variable `ETCD` names, or `etcd` of the PATH. All methods panic when
/// etcd does not do what it is asked to within [`LIMIT`]; a member that has just lost its leader is given
/// the time to find another. The process ends when this is dropped, and its
/// folder goes with it.
#[derive(Debug)]
pub struct Etcd {
    name: String,
    ports: Ports,
    arguments: Vec<String>,
    // Dropped before the folder it writes to.
    child: Mutex<Child>,
    folder: TempDir,
}

impl Etcd {
    /// Starts an etcd with default options, and waits until it answers.
    pub async fn start() -> Self {
        Self::builder().start().await
    }

    /// An etcd with options of its own.
    pub fn builder() -> EtcdBuilder {
        EtcdBuilder::default()
    }

    /// The URL for clients: https, if it was started with TLS.
    pub fn url(&self) -> String {
        self.ports.secure.map_or_else(|| self.ports.client_url(), |port| url("https", port))
    }

    /// The address for clients, `host:port`: what a proxy dials.
    pub fn address(&self) -> String {
        format!("{}:{}", Ipv4Addr::LOCALHOST, self.ports.secure.unwrap_or(self.ports.client))
    }

    /// The address of the rig's own questions, which has no TLS.
    pub fn plain_address(&self) -> String {
        format!("{}:{}", Ipv4Addr::LOCALHOST, self.ports.client)
    }

    /// Ends the process with SIGKILL. Its port refuses connections afterwards.
    pub fn kill(&self) {
        self.child().kill();
    }

    /// Stops the process with SIGSTOP: connections stay open and nothing is answered.
    pub fn freeze(&self) {
        self.child().freeze();
    }

    /// Lets a frozen process run again.
    pub fn resume(&self) {
        self.child().signal(Signal::CONT);
    }

    /// Kills the process if it runs, and starts it with the same data on the same ports. Waits until
    /// it answers, for which a member of a cluster needs its majority: restart several members with
    /// `tokio::join!`.
    pub async fn restart(&self) {
        self.restart_with(&[]).await;
    }

    /// Like [`restart`](Self::restart), and the process is told to end (SIGTERM), as it is when its version is
    /// replaced.
    pub async fn restart_in_order(&self) {
        self.child().signal(Signal::TERM);
        eventually("etcd ends", LIMIT, async || self.child().exited().is_some()).await;
        self.restart().await;
    }

    /// Like [`restart`](Self::restart), and waits only until it accepts connections: an etcd that all its clients want
    /// to be first at may have no time for the rig.
    pub async fn restart_unanswered(&self) {
        self.start_again(&[]);
        let accepts = async || {
            let accepted = TcpStream::connect(self.plain_address()).await.is_ok();
            if self.child().exited().is_some() {
                self.give_up(Failure::Exited);
            }
            accepted
        };
        eventually("etcd accepts connections", LIMIT, accepts).await;
    }

    async fn restart_with(&self, more: &[&str]) {
        self.start_again(more);
        if let Err(failure) = self.answers().await {
            self.give_up(failure);
        }
    }

    fn start_again(&self, more: &[&str]) {
        self.kill();
        let arguments: Vec<&str> = self.arguments.iter().map(String::as_str).chain(more.iter().copied()).collect();
        *self.child() = spawn(&self.folder, &arguments);
    }

    /// Like [`restart`](Self::restart), with all data lost. For an etcd that is alone: a member that
    /// forgets what it voted for breaks its cluster.
    pub async fn wipe_and_restart(&self) {
        self.kill();
        fs::remove_dir_all(data(&self.folder)).expect("the data can be removed");
        self.restart().await;
    }

    /// Like [`wipe_and_restart`](Self::wipe_and_restart), and the cluster that it is gets another id.
    pub async fn set_up_anew(&self) {
        self.kill();
        fs::remove_dir_all(data(&self.folder)).expect("the data can be removed");
        self.restart_with(&["--initial-cluster-token=another"]).await;
    }

    /// Takes a copy of the data as they are now, for [`restore`](Self::restore). The process is killed for that and
    /// restarted.
    pub async fn save(&self) {
        self.kill();
        copy(&data(&self.folder), &saved(&self.folder));
        self.restart().await;
    }

    /// Like [`restart`](Self::restart), with the data that were [saved](Self::save): the revision goes back.
    pub async fn restore(&self) {
        self.kill();
        fs::remove_dir_all(data(&self.folder)).expect("the data can be removed");
        copy(&saved(&self.folder), &data(&self.folder));
        self.restart().await;
    }

    /// A connection of the test's own, made anew for each call of this.
    ///
    /// # Panics
    ///
    /// If nothing listens. On an etcd with authentication use `etcd_client::Client::connect`.
    pub async fn client(&self) -> Client {
        self.connect(LIMIT).await.unwrap_or_else(|error| panic!("{self:?} accepts no connection: {error:?}"))
    }

    /// Puts a key without a lease, and returns the revision at which it did.
    pub async fn put(&self, key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) -> i64 {
        let (key, value) = (key.into(), value.into());
        let put = async |mut etcd: Client| etcd.put(key.clone(), value.clone(), None).await;
        let response = self.ask("a put", put).await;
        response.header().expect(HEADER).revision()
    }

    /// Deletes one key, and returns whether it was there.
    pub async fn delete(&self, key: impl Into<Vec<u8>>) -> bool {
        let key = key.into();
        let delete = async |mut etcd: Client| etcd.delete(key.clone(), None).await;
        self.ask("a delete", delete).await.deleted() == 1
    }

    /// All keys that begin with `prefix`, in order, each with its value and its lease (0 for none).
    pub async fn keys(&self, prefix: &str) -> Vec<(String, Vec<u8>, i64)> {
        let options = GetOptions::new().with_prefix();
        let list = async |mut etcd: Client| etcd.get(prefix, Some(options.clone())).await;
        let pairs = self.ask("a list", list).await.take_kvs();
        pairs
            .into_iter()
            .map(|pair| {
                let lease = pair.lease();
                let (key, value) = pair.into_key_value();
                (String::from_utf8_lossy(&key).into_owned(), value, lease)
            })
            .collect()
    }

    /// The ids of all leases that live.
    pub async fn leases(&self) -> Vec<i64> {
        let list = async |mut etcd: Client| etcd.leases().await;
        let response = self.ask("a list of leases", list).await;
        response.leases().iter().map(LeaseStatus::id).collect()
    }

    /// Revokes a lease: its keys are deleted.
    pub async fn revoke(&self, lease: i64) {
        let revoke = async |mut etcd: Client| etcd.lease_revoke(lease).await;
        self.ask("a revocation", revoke).await;
    }

    /// The current revision.
    pub async fn revision(&self) -> i64 {
        let read = async |mut etcd: Client| etcd.get(PROBE, None).await;
        let response = self.ask("a read", read).await;
        response.header().expect(HEADER).revision()
    }

    /// Adds a member that learns: it has no vote, and answers next to nothing.
    pub async fn add_learner(&self) -> Self {
        let (name, ports) = ("learner", Ports::free(false));
        let (own, peer) = (self.ports.peer_url(), ports.peer_url());
        let options = etcd_client::MemberAddOptions::new().with_is_learner();
        let mut client = self.client().await;
        client.member_add([peer.clone()], Some(options)).await.expect("etcd adds a member");
        let cluster = format!("{}={own},{name}={peer}", self.name);
        let builder = Self::builder().arg("--initial-cluster-state=existing");
        let learner = Self::launch(name, ports, &peer, &cluster, &builder);
        eventually("the learner answers", LIMIT, async || learner.status().await).await;
        learner
    }

    /// Compacts to the current revision, and returns it: watches can resume behind it only.
    pub async fn compact(&self) -> i64 {
        let revision = self.revision().await;
        let options = CompactionOptions::new().with_physical();
        let compact = async |mut etcd: Client| match etcd.compact(revision, Some(options.clone())).await {
            // By a compaction before this one, since which nothing was written.
            Err(Error::GRpcStatus(status)) if status.message().contains("has been compacted") => Ok(()),
            compacted => compacted.map(drop),
        };
        self.ask("a compaction", compact).await;
        revision
    }

    /// Starts a member of `cluster` (`name=peer-url,..`), which the others find at `peer`, without waiting for it.
    fn launch(name: &str, ports: Ports, peer: &str, cluster: &str, builder: &EtcdBuilder) -> Self {
        init_tracing();
        let folder = tempfile::Builder::new().prefix("etcd-").tempdir().expect("the temporary folder takes a folder");
        let option = |name: &str, value: &str| format!("--{name}={value}");
        let mut arguments = vec![
            option("name", name),
            option("data-dir", &data(&folder).to_string_lossy()),
            option("listen-client-urls", &ports.client_urls()),
            option("advertise-client-urls", &ports.client_url()),
            option("listen-peer-urls", &ports.peer_url()),
            option("initial-advertise-peer-urls", peer),
            option("initial-cluster", cluster),
        ];
        if let Some(ttl) = builder.jwt {
            let secret = folder.path().join("jwt-secret");
            fs::write(&secret, "the tests' own secret for tokens").expect("etcd's folder takes a file");
            let (secret, ttl) = (secret.display(), ttl.as_secs());
            arguments.push(format!("--auth-token=jwt,priv-key={secret},sign-method=HS256,ttl={ttl}s"));
        }
        arguments.extend_from_slice(&builder.arguments);
        if name == MEMBERS[0] {
            arguments.extend_from_slice(&builder.arguments_of_first);
        }
        Self { name: name.to_owned(), child: Mutex::new(spawn(&folder, &arguments)), ports, arguments, folder }
    }

    /// Waits until etcd answers a linearizable read, or has exited.
    async fn answers(&self) -> Result<(), Failure> {
        let answer = async {
            loop {
                let answered = self.read().await;
                // In this order: on a port that was taken, another's etcd may have answered.
                if self.child().exited().is_some() {
                    return Err(Failure::Exited);
                }
                if answered {
                    return Ok(());
                }
                sleep(POLL_INTERVAL).await;
            }
        };
        timeout(LIMIT, answer).await.unwrap_or(Err(Failure::Silent))
    }

    /// The answer to a question, asked over a connection of its own.
    async fn ask<T>(&self, what: &str, question: impl AsyncFn(Client) -> Result<T, Error>) -> T {
        eventually("etcd has a leader", LIMIT, async || {
            match question(self.client().await).await {
                Ok(answer) => Some(answer),
                // It was lost together with the leader it was meant for. What is asked here may be done twice.
                Err(Error::GRpcStatus(status)) if LOST.iter().any(|lost| status.message().contains(lost)) => None,
                Err(error) => panic!("{what} failed on {self:?}: {error}"),
            }
        })
        .await
    }

    /// Whether a linearizable read succeeds now.
    async fn read(&self) -> bool {
        let read = async { self.connect(ATTEMPT).await?.get(PROBE, None).await };
        match timeout(ATTEMPT, read).await {
            Ok(Ok(_)) => true,
            // With authentication on, etcd makes sure of its leader first and of the user then.
            Ok(Err(Error::GRpcStatus(status))) => status.message().contains("user name is empty"),
            _ => false,
        }
    }

    async fn connect(&self, limit: Duration) -> Result<Client, Error> {
        let channel = Endpoint::from_shared(self.ports.client_url())
            .expect("etcd's URL is one")
            .connect_timeout(limit)
            .timeout(limit)
            .connect()
            .await?;
        Client::from_channel(Channel::Tonic(channel), None).await
    }

    /// What this member thinks of its cluster, if it answers at once.
    async fn status(&self) -> Option<StatusResponse> {
        let status = async { self.connect(ATTEMPT).await?.status().await };
        timeout(ATTEMPT, status).await.ok()?.ok()
    }

    /// The peer URLs of its cluster's members, if it answers at once.
    async fn peers(&self) -> Option<Vec<String>> {
        let list = async { self.connect(ATTEMPT).await?.member_list().await };
        let list = timeout(ATTEMPT, list).await.ok()?.ok()?;
        Some(list.members().iter().flat_map(|member| member.peer_urls().to_vec()).collect())
    }

    /// Whether it exited because something else listens on one of its ports.
    fn lost_its_port(&self, failure: Failure) -> bool {
        failure == Failure::Exited && self.log().contains("address already in use")
    }

    fn give_up(&self, failure: Failure) -> ! {
        panic!("{} {failure:?} with {:?}:\n{}", self.name, self.arguments, self.log())
    }

    fn log(&self) -> String {
        let log = fs::read(self.folder.path().join(LOG)).unwrap_or_default();
        String::from_utf8_lossy(&log).into_owned()
    }

    fn child(&self) -> MutexGuard<'_, Child> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Options of an [`Etcd`] or a [`Cluster`].
#[derive(Debug, Clone, Default)]
#[must_use]
pub struct EtcdBuilder {
    arguments: Vec<String>,
    /// Of the first member alone.
    arguments_of_first: Vec<String>,
    is_secure: bool,
    /// The life of a JWT.
    jwt: Option<Duration>,
}

impl EtcdBuilder {
    /// One more argument (`--quota-backend-bytes=16777216`), behind the rig's own: of two, the later
    /// one counts.
    pub fn arg(mut self, argument: impl Into<String>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    /// One more argument for the first member of a cluster alone.
    pub fn arg_of_first(mut self, argument: impl Into<String>) -> Self {
        self.arguments_of_first.push(argument.into());
        self
    }

    /// Serves clients with TLS under this certificate, which etcd reads anew for each connection. The rig itself goes
    /// on asking over a port without.
    pub fn tls(mut self, files: &Files) -> Self {
        self.is_secure = true;
        self.arg(format!("--cert-file={}", files.cert.display())).arg(format!("--key-file={}", files.key.display()))
    }

    /// Like [`tls`](Self::tls), for clients alone that show a certificate of `clients`.
    pub fn mutual_tls(self, files: &Files, clients: &Authority) -> Self {
        self.tls(files).arg("--client-cert-auth").arg(format!("--trusted-ca-file={}", clients.file().display()))
    }

    /// Gives out JWT that live for `ttl`, in whole seconds, instead of simple tokens.
    pub fn jwt(mut self, ttl: Duration) -> Self {
        self.jwt = Some(ttl);
        self
    }

    /// Starts one etcd, and waits until it answers.
    pub async fn start(self) -> Etcd {
        let mut members = self.launch(&["etcd"]).await;
        members.remove(0)
    }

    /// Starts a cluster of three members, and waits until each answers.
    pub async fn start_cluster(self) -> Cluster {
        Cluster { members: self.launch(&MEMBERS).await, links: Vec::new(), builder: self, replaced: 0 }
    }

    /// Starts a cluster of three members that can be [cut off](Cluster::cut_off).
    pub async fn start_divisible_cluster(self) -> Cluster {
        let ports = MEMBERS.map(|_| Ports::free(self.is_secure));
        let mut links = Vec::new();
        for ports in ports {
            links.push(Proxy::start_between_members(format!("{}:{}", Ipv4Addr::LOCALHOST, ports.peer)).await);
        }
        let peers: Vec<String> = links.iter().map(Proxy::url).collect();
        let members = self.launch_at(&MEMBERS, &ports, &peers);
        if let Some((member, failure)) = first_failure(&members).await {
            member.give_up(failure);
        }
        Cluster { members, links, builder: self, replaced: 0 }
    }

    /// Starts one member a name. New ports are tried when another process was faster to listen.
    async fn launch(&self, names: &[&str]) -> Vec<Etcd> {
        let mut attempt = 1;
        loop {
            let members = self.launch_once(names);
            let Some((member, failure)) = first_failure(&members).await else { return members };
            if attempt == ATTEMPTS || !member.lost_its_port(failure) {
                member.give_up(failure);
            }
            attempt += 1;
        }
    }

    fn launch_once(&self, names: &[&str]) -> Vec<Etcd> {
        let ports: Vec<Ports> = names.iter().map(|_| Ports::free(self.is_secure)).collect();
        let peers: Vec<String> = ports.iter().map(|ports| ports.peer_url()).collect();
        self.launch_at(names, &ports, &peers)
    }

    fn launch_at(&self, names: &[&str], ports: &[Ports], peers: &[String]) -> Vec<Etcd> {
        let members: Vec<String> = names.iter().zip(peers).map(|(name, peer)| format!("{name}={peer}")).collect();
        let (cluster, members) = (members.join(","), names.iter().zip(ports).zip(peers));
        members.map(|((name, ports), peer)| Etcd::launch(name, *ports, peer, &cluster, self)).collect()
    }
}

/// Three etcd processes that are one cluster.
#[derive(Debug)]
pub struct Cluster {
    members: Vec<Etcd>,
    /// What stands before each member, for the others, if they can be parted.
    links: Vec<Proxy>,
    builder: EtcdBuilder,
    /// How many members were replaced.
    replaced: usize,
}

impl Cluster {
    /// Starts three members with default options, and waits until each answers.
    pub async fn start() -> Self {
        Etcd::builder().start_cluster().await
    }

    /// The URLs of all members.
    pub fn urls(&self) -> Vec<String> {
        self.members.iter().map(Etcd::url).collect()
    }

    /// All members.
    pub fn each(&self) -> &[Etcd] {
        &self.members
    }

    /// One of the members 0, 1 and 2.
    pub fn member(&self, index: usize) -> &Etcd {
        &self.members[index]
    }

    /// Parts a member from the others: no byte passes between them in either direction. Its clients still reach it.
    ///
    /// # Panics
    ///
    /// If the cluster is not a divisible one.
    pub async fn cut_off(&self, index: usize) {
        assert!(!self.links.is_empty(), "the members of this cluster cannot be parted");
        let status = eventually("the member answers", LIMIT, async || self.members[index].status().await).await;
        let id = status.header().expect(HEADER).member_id();
        for (other, link) in self.links.iter().enumerate() {
            if other == index { link.black_hole() } else { link.black_hole_from(id) }
        }
    }

    /// Ends [`cut_off`](Self::cut_off).
    pub fn reunite(&self) {
        self.links.iter().for_each(Proxy::forward);
    }

    /// Replaces a member by one without data, under a name and at addresses of its own. The old one is taken out of the
    /// cluster first, by which it ends.
    ///
    /// # Panics
    ///
    /// If the cluster is a divisible one.
    pub async fn replace(&mut self, index: usize) {
        assert!(self.links.is_empty(), "the members of this cluster are known by what stands before them");
        let status = eventually("the member answers", LIMIT, async || self.members[index].status().await).await;
        let id = status.header().expect(HEADER).member_id();
        let other = &self.members[(index + 1) % self.members.len()];
        let gone = self.members[index].ports.peer_url();
        // etcd takes it once its members have been connected for 5 s, and may take it without saying so.
        eventually("the member is removed", LIMIT, async || {
            let remove = async { other.connect(ATTEMPT).await?.member_remove(id).await };
            remove.await.is_ok() || other.peers().await.is_some_and(|peers| !peers.contains(&gone))
        })
        .await;
        let old = &self.members[index];
        eventually("the removed member ends", LIMIT, async || old.child().exited().is_some()).await;

        self.replaced += 1;
        let (name, ports) = (format!("{}-{}", MEMBERS[index], self.replaced), Ports::free(self.builder.is_secure));
        let peer = ports.peer_url();
        eventually("the next member is added", LIMIT, async || {
            // Without a limit it waits for ever where it was proposed to a leader that is gone.
            let add = async { other.connect(ATTEMPT).await?.member_add([peer.clone()], None).await };
            add.await.is_ok() || other.peers().await.is_some_and(|peers| peers.contains(&peer))
        })
        .await;
        let others = self.members.iter().filter(|member| member.name != old.name);
        let others = others.map(|member| format!("{}={}", member.name, member.ports.peer_url()));
        let cluster = others.chain([format!("{name}={peer}")]).collect::<Vec<_>>().join(",");
        let builder = self.builder.clone().arg("--initial-cluster-state=existing");
        let next = Etcd::launch(&name, ports, &peer, &cluster, &builder);
        if let Err(failure) = next.answers().await {
            next.give_up(failure);
        }
        self.members[index] = next;
    }

    /// Waits until all members that answer, and at least two of them, follow one that answers too;
    /// returns its index.
    pub async fn leader(&self) -> usize {
        eventually("a majority follows one leader", LIMIT, async || {
            let mut views = Vec::new();
            for (index, member) in self.members.iter().enumerate() {
                if let Some(status) = member.status().await {
                    views.push((index, status));
                }
            }
            let leader = views.first()?.1.leader();
            // A leader that was frozen believes in itself until it hears of the others' election.
            let agreed = views.iter().all(|(_, status)| status.leader() == leader);
            let id = |status: &StatusResponse| status.header().expect(HEADER).member_id();
            let (index, _) = views.iter().find(|(_, status)| id(status) == leader)?;
            (agreed && views.len() * 2 > self.members.len()).then_some(*index)
        })
        .await
    }
}

/// What etcd says of a request that was under way while the leader changed.
const LOST: [&str; 2] = ["leader changed", "request timed out"];

/// Waits until each of `members` answers, or one of them fails to.
async fn first_failure(members: &[Etcd]) -> Option<(&Etcd, Failure)> {
    for member in members {
        if let Err(failure) = member.answers().await {
            return Some((member, failure));
        }
    }
    None
}

/// Why an etcd that was started does not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Failure {
    /// The process has ended.
    Exited,
    /// It runs, and did not answer in time.
    Silent,
}

/// Where a member listens.
#[derive(Debug, Clone, Copy)]
struct Ports {
    client: u16,
    peer: u16,
    /// For clients with TLS.
    secure: Option<u16>,
}

impl Ports {
    fn free(is_secure: bool) -> Self {
        Self { client: free_port(), peer: free_port(), secure: is_secure.then(free_port) }
    }

    fn client_url(self) -> String {
        url("http", self.client)
    }

    fn client_urls(self) -> String {
        let secure = self.secure.map(|port| format!(",{}", url("https", port)));
        format!("{}{}", self.client_url(), secure.unwrap_or_default())
    }

    fn peer_url(self) -> String {
        url("http", self.peer)
    }
}

fn url(scheme: &str, port: u16) -> String {
    format!("{scheme}://{}:{port}", Ipv4Addr::LOCALHOST)
}

fn spawn(folder: &TempDir, arguments: &[impl AsRef<OsStr>]) -> Child {
    let log =
        File::options().create(true).append(true).open(folder.path().join(LOG)).expect("etcd's folder takes a log");
    let stderr = log.try_clone().expect("the log can be shared");
    Child::spawn(Command::new(program()).args(arguments).stdin(Stdio::null()).stdout(log).stderr(stderr))
}

/// The etcd that the variable `ETCD` names, or that of the PATH.
pub fn program() -> OsString {
    env::var_os("ETCD").unwrap_or_else(|| OsString::from("etcd"))
}

fn data(folder: &TempDir) -> PathBuf {
    folder.path().join("data")
}

fn saved(folder: &TempDir) -> PathBuf {
    folder.path().join("saved")
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("the folder takes a folder");
    for entry in fs::read_dir(from).expect("the folder can be read") {
        let entry = entry.expect("the folder can be read").path();
        let copied = to.join(entry.file_name().expect("an entry has a name"));
        if entry.is_dir() {
            copy(&entry, &copied);
        } else {
            fs::copy(&entry, &copied).expect("the file can be copied");
        }
    }
}

/// A port that nothing listens on, and that no other test gets, of whichever process: a member that is killed finds its
/// port as it left it.
///
/// It lies below the range from which the kernel takes ports for outgoing connections (32,768 and
/// up), so that none of those takes it while etcd is down: a client that dials a dead port of that
/// range over and over even meets itself in the end.
pub fn free_port() -> u16 {
    static BLOCK: LazyLock<Block> = LazyLock::new(Block::take);
    BLOCK.next()
}

/// Ports that are this process's while it runs.
struct Block {
    /// Holds the first port, by which other processes see that the block is taken.
    guard: TcpListener,
    taken: AtomicU16,
}

impl Block {
    fn take() -> Self {
        let guard = (FIRST_PORT..=LAST_BLOCK)
            .step_by(usize::from(BLOCK_SIZE))
            .find_map(|first| TcpListener::bind((Ipv4Addr::LOCALHOST, first)).ok());
        let guard = guard.expect("fewer than ten test processes run at the same time");
        Self { guard, taken: AtomicU16::new(0) }
    }

    fn next(&self) -> u16 {
        let first = self.guard.local_addr().expect("a listener has an address").port();
        loop {
            let port = first + 1 + self.taken.fetch_add(1, Ordering::Relaxed) % (BLOCK_SIZE - 1);
            if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
                return port;
            }
        }
    }
}

const MEMBERS: [&str; 3] = ["one", "two", "three"];

const FIRST_PORT: u16 = 10_000;
const BLOCK_SIZE: u16 = 2_250;
const LAST_BLOCK: u16 = FIRST_PORT + 9 * BLOCK_SIZE;

/// How often new ports are tried.
const ATTEMPTS: usize = 5;

/// How long one question may take while etcd starts or elects.
const ATTEMPT: Duration = Duration::from_secs(1);

/// A key that is never put.
const PROBE: &str = "tonic-etcd-probe";

const LOG: &str = "log";

const HEADER: &str = "etcd's responses have a header";
