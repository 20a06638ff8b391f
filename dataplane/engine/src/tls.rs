//! TLS and QUIC settings of both sides of a link; docs/protocol/links.md, "TLS", "Sizes" and "Bounds".

use std::sync::Arc;
use std::time::Duration;

use hopfare_core::ShardId;
use quinn_proto::congestion;
use quinn_proto::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn_proto::{
    ClientConfig, EndpointConfig, IdleTimeout, RandomConnectionIdGenerator, ServerConfig, TransportConfig,
    ValidationTokenConfig, VarInt,
};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::Resumption;
use rustls::crypto::{aws_lc_rs, verify_tls13_signature, CryptoProvider};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::server::NoServerSessionStorage;
use rustls::{CipherSuite, DigitallySignedStruct, SignatureScheme};

use crate::controller::Bounded;
use crate::steer::{ShardCids, Steer};

/// Largest UDP payload: a 1500-byte path less IPv6 and UDP.
pub const UDP_PAYLOAD: u16 = 1452;
/// Content of a DATAGRAM frame, exactly.
pub const LINK_FRAME: usize = 1388;
pub const LOCAL_CID_BYTES: usize = 8;
/// What a peer may have unread before its link is up: greeting and streams that overtake it.
pub const EARLY_WINDOW: u32 = 256 * 1024;
pub const STREAM_WINDOW: u32 = 4 << 20;
pub const LINK_WINDOW: u32 = 8 << 20;
/// Unidirectional streams a peer may open at first. The library keeps an entry for each, so the limit follows the need.
pub const EARLY_STREAMS: u32 = 128;
pub const MAX_STREAMS: u32 = 16_384;
/// Frames of the datagram lane that wait in QUIC: what one loop can send.
pub const DATAGRAMS_QUEUED: usize = 128;
/// What the library counts for one of them, about.
pub const DATAGRAM_COST: usize = LINK_FRAME + 64;

#[derive(Debug)]
struct AnyEd25519(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyEd25519 {
    /// Any certificate: TLS proves the possession of its key, and Python compares that with the identity it wants.
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is not spoken".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}

fn provider() -> Arc<CryptoProvider> {
    let mut provider = aws_lc_rs::default_provider();
    // AES-128 first: a quarter less work than AES-256, and links have no secrets that outlive a session.
    provider.cipher_suites.sort_by_key(|suite| match suite.suite() {
        CipherSuite::TLS13_AES_128_GCM_SHA256 => 0,
        CipherSuite::TLS13_AES_256_GCM_SHA384 => 1,
        _ => 2,
    });
    Arc::new(provider)
}

fn transport(idle_s: f64, algorithm: &str) -> Arc<TransportConfig> {
    let mut config = TransportConfig::default();
    config
        .max_concurrent_bidi_streams(VarInt::from_u32(2))
        .max_concurrent_uni_streams(VarInt::from_u32(EARLY_STREAMS))
        .max_idle_timeout(IdleTimeout::try_from(Duration::from_secs_f64(idle_s)).ok())
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW))
        .receive_window(VarInt::from_u32(EARLY_WINDOW))
        .datagram_receive_buffer_size(Some(4 << 20))
        .datagram_send_buffer_size(DATAGRAMS_QUEUED * DATAGRAM_COST)
        // One size for all: a path that cannot carry it never gets a link up, one that shrinks loses it.
        .initial_mtu(UDP_PAYLOAD)
        .min_mtu(UDP_PAYLOAD)
        .mtu_discovery_config(None)
        .allow_spin(false);
    let factory: Arc<dyn congestion::ControllerFactory + Send + Sync> = match algorithm {
        "bbr" => Arc::new(Bounded::<congestion::BbrConfig>::default()),
        "newreno" => Arc::new(Bounded::<congestion::NewRenoConfig>::default()),
        _ => Arc::new(Bounded::<congestion::CubicConfig>::default()),
    };
    config.congestion_controller_factory(factory);
    Arc::new(config)
}

#[derive(Clone)]
pub struct Settings {
    pub endpoint: Arc<EndpointConfig>,
    pub client: ClientConfig,
    pub server: Option<Arc<ServerConfig>>,
}

impl Settings {
    /// The same for a shard, whose connection ids lead to it. Keys are shared.
    pub fn of_shard(&self, steer: Steer, shard: ShardId) -> Settings {
        let mut endpoint = (*self.endpoint).clone();
        endpoint.cid_generator(move || Box::new(ShardCids { steer, shard }));
        Settings { endpoint: Arc::new(endpoint), ..self.clone() }
    }
}

/// Settings for one endpoint; `certificate` and `key` are DER (PKCS #8) and make it accept links.
pub fn settings(
    certificate: Option<(Vec<u8>, Vec<u8>)>,
    alpn: &str,
    idle_s: f64,
    algorithm: &str,
) -> Result<Settings, String> {
    let provider = provider();
    let transport = transport(idle_s, algorithm);
    let mut endpoint = EndpointConfig::default();
    endpoint
        .supported_versions(vec![1])
        .grease_quic_bit(false)
        .cid_generator(|| Box::new(RandomConnectionIdGenerator::new(LOCAL_CID_BYTES)));

    let mut tls = rustls::ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| error.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyEd25519(provider.clone())))
        .with_no_client_auth();
    tls.alpn_protocols = vec![alpn.as_bytes().to_vec()];
    tls.resumption = Resumption::disabled();
    let mut client =
        ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).map_err(|error| error.to_string())?));
    client.transport_config(transport.clone());

    let server = match certificate {
        None => None,
        Some((certificate, key)) => {
            let mut tls = rustls::ServerConfig::builder_with_provider(provider)
                .with_protocol_versions(&[&rustls::version::TLS13])
                .map_err(|error| error.to_string())?
                .with_no_client_auth()
                .with_single_cert(
                    vec![CertificateDer::from(certificate)],
                    PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key)),
                )
                .map_err(|error| error.to_string())?;
            tls.alpn_protocols = vec![alpn.as_bytes().to_vec()];
            tls.session_storage = Arc::new(NoServerSessionStorage {});
            tls.send_tls13_tickets = 0;
            let crypto = QuicServerConfig::try_from(tls).map_err(|error| error.to_string())?;
            let mut config = ServerConfig::with_crypto(Arc::new(crypto));
            let mut tokens = ValidationTokenConfig::default();
            tokens.sent(0);
            config
                .transport_config(transport)
                .validation_token_config(tokens)
                .retry_token_lifetime(Duration::from_secs(15))
                .max_incoming(512)
                .incoming_buffer_size(64 * 1024)
                .incoming_buffer_size_total(8 << 20);
            Some(Arc::new(config))
        }
    };
    Ok(Settings { endpoint: Arc::new(endpoint), client, server })
}
