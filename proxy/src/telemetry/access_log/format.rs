//! Access-log format strings as Envoy and Istio write them, parsed into literals and operators.

use std::fmt;

use http::HeaderName;

/// A format string cut into its parts.
pub type Template = Vec<Piece>;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    Literal(String),
    Operator(Operator),
}

/// `%NAME(argument):max%`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operator {
    pub field: Field,
    /// At most this many bytes of the value (`%REQ(X):10%`).
    pub max: Option<usize>,
}

/// What an operator stands for; names as in Envoy's access-log documentation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Field {
    /// None: `2006-01-02T15:04:05.000Z`; else a strftime form.
    StartTime(Option<String>),
    /// The first of the two that the request has.
    Request(Header, Option<Header>),
    Response(HeaderName, Option<HeaderName>),
    Protocol,
    ResponseCode,
    ResponseFlags,
    ResponseFlagsLong,
    ResponseCodeDetails,
    ConnectionTerminationDetails,
    UpstreamTransportFailureReason,
    DownstreamTransportFailureReason,
    /// All URI names of the client's certificate, whoever issued it.
    DownstreamPeerUriSan,
    DownstreamPeerDnsSan,
    DownstreamPeerSubject,
    DownstreamPeerFingerprint,
    DownstreamTlsVersion,
    DownstreamTlsCipher,
    BytesReceived,
    BytesSent,
    Duration,
    GrpcStatusNumber,
    UpstreamHost,
    UpstreamCluster,
    UpstreamLocal(Part),
    DownstreamLocal(Part),
    DownstreamRemote(Part),
    RequestedServerName,
    RouteName,
    /// Ours: `<namespace>/<pod>`.
    Workload,
    /// Ours: the identity that the client has proved by mesh mTLS.
    SourcePrincipal,
    /// An operator of Envoy's whose value egret never has: always missing.
    Absent,
}

/// A request header, or what HTTP/2 calls a pseudo-header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Header {
    Method,
    Path,
    Authority,
    Scheme,
    Name(HeaderName),
}

/// Which part of an address is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Whole,
    Ip,
    Port,
}

/// Why a format cannot be used. Positions count characters from 1.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// No such operator in Envoy, Istio or egret.
    #[error("unknown operator %{name}% at character {position}{place}")]
    Unknown { name: String, position: usize, place: Place },
    /// A `%` that begins no operator, or one whose closing `%` is missing.
    #[error(
        "the `%` at character {position}{place} begins no whole operator (`%NAME%`, `%NAME(argument):length%`; write `%%` for a percent sign)"
    )]
    Unfinished { position: usize, place: Place },
    /// The operator exists and its argument does not fit.
    #[error("operator %{name}% at character {position}{place}: {reason}")]
    Argument { name: String, position: usize, place: Place, reason: String },
    /// `accessLogEncoding: JSON` wants an object.
    #[error("accessLogEncoding is JSON, and accessLogFormat is no JSON object: {0}")]
    Json(String),
}

/// Within which JSON key the format string stands; empty for text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place(pub Option<String>);

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some(key) => write!(f, " of the value of `{key}`"),
            None => Ok(()),
        }
    }
}

/// Operators of Envoy's that egret knows by name and never has a value for. They print as missing, so that a format
/// written for a sidecar can be kept; [`super::warnings`] names them.
const ABSENT: &[&str] = &[
    "CLUSTER_METADATA",
    "CONNECTION_ID",
    "DOWNSTREAM_LOCAL_SUBJECT",
    "DOWNSTREAM_LOCAL_URI_SAN",
    "DOWNSTREAM_PEER_ISSUER",
    "DYNAMIC_METADATA",
    "FILTER_CHAIN_NAME",
    "FILTER_STATE",
    "METADATA",
    "REQUEST_DURATION",
    "REQUEST_TX_DURATION",
    "RESPONSE_DURATION",
    "RESPONSE_TX_DURATION",
    "STREAM_ID",
    "TRAILER",
    "UPSTREAM_FILTER_STATE",
    "UPSTREAM_METADATA",
    "UPSTREAM_PEER_ISSUER",
    "UPSTREAM_PEER_SUBJECT",
    "UPSTREAM_PEER_URI_SAN",
    "UPSTREAM_REQUEST_ATTEMPT_COUNT",
    "UPSTREAM_TLS_CIPHER",
    "UPSTREAM_TLS_VERSION",
    "VIRTUAL_CLUSTER_NAME",
];

/// Parses `format`. `place` says in messages where the string stands.
pub fn parse(format: &str, place: &Place) -> Result<Template, FormatError> {
    let mut pieces = Template::new();
    let mut literal = String::new();
    let mut rest = format;
    while let Some(cut) = rest.find('%') {
        literal.push_str(&rest[..cut]);
        let at = &rest[cut + 1..];
        if let Some(after) = at.strip_prefix('%') {
            literal.push('%');
            rest = after;
            continue;
        }
        let position = format[..format.len() - at.len() - 1].chars().count() + 1;
        let found = Spelling::read(at).ok_or(FormatError::Unfinished { position, place: place.clone() })?;
        let operator = found.operator().map_err(|problem| problem.into_error(found.name, position, place))?;
        if !literal.is_empty() {
            pieces.push(Piece::Literal(std::mem::take(&mut literal)));
        }
        pieces.push(Piece::Operator(operator));
        rest = found.rest;
    }
    literal.push_str(rest);
    if !literal.is_empty() {
        pieces.push(Piece::Literal(literal));
    }
    Ok(pieces)
}

/// The names of the operators in `format` that egret never has a value for.
pub fn absent(format: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut rest = format;
    while let Some(cut) = rest.find('%') {
        let at = &rest[cut + 1..];
        match Spelling::read(at) {
            Some(found) => {
                if ABSENT.contains(&found.name) && !names.iter().any(|name| name == found.name) {
                    names.push(found.name.to_owned());
                }
                rest = found.rest;
            }
            None => rest = at.strip_prefix('%').unwrap_or(at),
        }
    }
    names
}

/// One operator as it is spelt, after its opening `%`.
struct Spelling<'a> {
    name: &'a str,
    argument: Option<&'a str>,
    max: Option<&'a str>,
    rest: &'a str,
}

enum Problem {
    Unknown,
    Argument(String),
}

impl Problem {
    fn into_error(self, name: &str, position: usize, place: &Place) -> FormatError {
        let (name, place) = (name.to_owned(), place.clone());
        match self {
            Self::Unknown => FormatError::Unknown { name, position, place },
            Self::Argument(reason) => FormatError::Argument { name, position, place, reason },
        }
    }
}

impl<'a> Spelling<'a> {
    fn read(at: &'a str) -> Option<Self> {
        let end = at.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).filter(|end| *end > 0)?;
        let (name, mut rest) = at.split_at(end);
        let mut argument = None;
        if let Some(open) = rest.strip_prefix('(') {
            // The argument may hold `%` (a strftime form), so the bracket is what ends it.
            let (inside, after) = open.split_once(')')?;
            argument = Some(inside);
            rest = after;
        }
        let (max, rest) = match rest.strip_prefix(':') {
            Some(length) => length.split_once('%').map(|(max, rest)| (Some(max), rest))?,
            None => (None, rest.strip_prefix('%')?),
        };
        Some(Self { name, argument, max, rest })
    }

    fn operator(&self) -> Result<Operator, Problem> {
        let field = self.field()?;
        let max = match self.max {
            None => None,
            Some(digits) => {
                Some(digits.parse().map_err(|_| Problem::Argument(format!("`{digits}` is no length in bytes")))?)
            }
        };
        Ok(Operator { field, max })
    }

    fn field(&self) -> Result<Field, Problem> {
        if ABSENT.contains(&self.name) {
            return Ok(Field::Absent);
        }
        let plain = match self.name {
            "START_TIME" => return start_time(self.argument),
            "REQ" => {
                let (first, second) = self.headers()?;
                return Ok(Field::Request(header(first)?, second.map(header).transpose()?));
            }
            "RESP" => {
                let (first, second) = self.headers()?;
                return Ok(Field::Response(header_name(first)?, second.map(header_name).transpose()?));
            }
            "GRPC_STATUS" | "GRPC_STATUS_NUMBER" => return Ok(Field::GrpcStatusNumber),
            "PROTOCOL" => Field::Protocol,
            "RESPONSE_CODE" => Field::ResponseCode,
            "RESPONSE_FLAGS" => Field::ResponseFlags,
            "RESPONSE_FLAGS_LONG" => Field::ResponseFlagsLong,
            "RESPONSE_CODE_DETAILS" => Field::ResponseCodeDetails,
            "CONNECTION_TERMINATION_DETAILS" => Field::ConnectionTerminationDetails,
            "UPSTREAM_TRANSPORT_FAILURE_REASON" => Field::UpstreamTransportFailureReason,
            "DOWNSTREAM_TRANSPORT_FAILURE_REASON" => Field::DownstreamTransportFailureReason,
            "DOWNSTREAM_PEER_URI_SAN" => Field::DownstreamPeerUriSan,
            "DOWNSTREAM_PEER_DNS_SAN" => Field::DownstreamPeerDnsSan,
            "DOWNSTREAM_PEER_SUBJECT" => Field::DownstreamPeerSubject,
            "DOWNSTREAM_PEER_FINGERPRINT_256" => Field::DownstreamPeerFingerprint,
            "DOWNSTREAM_TLS_VERSION" => Field::DownstreamTlsVersion,
            "DOWNSTREAM_TLS_CIPHER" => Field::DownstreamTlsCipher,
            "BYTES_RECEIVED" => Field::BytesReceived,
            "BYTES_SENT" => Field::BytesSent,
            "DURATION" => Field::Duration,
            "UPSTREAM_HOST" | "UPSTREAM_REMOTE_ADDRESS" => Field::UpstreamHost,
            "UPSTREAM_CLUSTER" | "UPSTREAM_CLUSTER_RAW" => Field::UpstreamCluster,
            "UPSTREAM_LOCAL_ADDRESS" => Field::UpstreamLocal(Part::Whole),
            "UPSTREAM_LOCAL_ADDRESS_WITHOUT_PORT" => Field::UpstreamLocal(Part::Ip),
            "UPSTREAM_LOCAL_PORT" => Field::UpstreamLocal(Part::Port),
            "DOWNSTREAM_LOCAL_ADDRESS" => Field::DownstreamLocal(Part::Whole),
            "DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT" => Field::DownstreamLocal(Part::Ip),
            "DOWNSTREAM_LOCAL_PORT" => Field::DownstreamLocal(Part::Port),
            "DOWNSTREAM_REMOTE_ADDRESS" | "DOWNSTREAM_DIRECT_REMOTE_ADDRESS" => Field::DownstreamRemote(Part::Whole),
            "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT" | "DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT" => {
                Field::DownstreamRemote(Part::Ip)
            }
            "DOWNSTREAM_REMOTE_PORT" | "DOWNSTREAM_DIRECT_REMOTE_PORT" => Field::DownstreamRemote(Part::Port),
            "REQUESTED_SERVER_NAME" => Field::RequestedServerName,
            "ROUTE_NAME" => Field::RouteName,
            "WORKLOAD" => Field::Workload,
            "SOURCE_PRINCIPAL" => Field::SourcePrincipal,
            _ => return Err(Problem::Unknown),
        };
        match self.argument {
            Some(argument) if !argument.is_empty() => {
                Err(Problem::Argument(format!("it takes no argument, and has `{argument}`")))
            }
            _ => Ok(plain),
        }
    }

    fn headers(&self) -> Result<(&'a str, Option<&'a str>), Problem> {
        let argument = self.argument.unwrap_or_default();
        if argument.is_empty() {
            return Err(Problem::Argument(format!("it wants the name of a header, as in %{}(USER-AGENT)%", self.name)));
        }
        match argument.split_once('?') {
            Some((first, second)) => Ok((first, Some(second))),
            None => Ok((argument, None)),
        }
    }
}

fn start_time(argument: Option<&str>) -> Result<Field, Problem> {
    let Some(form) = argument.filter(|form| !form.is_empty()) else { return Ok(Field::StartTime(None)) };
    // Tried once here, so that a line never fails on it.
    match jiff::fmt::strtime::format(form, jiff::Timestamp::UNIX_EPOCH) {
        Ok(_) => Ok(Field::StartTime(Some(form.to_owned()))),
        Err(error) => Err(Problem::Argument(format!("`{form}` is no strftime form: {error}"))),
    }
}

fn header(name: &str) -> Result<Header, Problem> {
    Ok(match name.to_ascii_lowercase().as_str() {
        ":method" => Header::Method,
        ":path" => Header::Path,
        ":authority" | "host" => Header::Authority,
        ":scheme" => Header::Scheme,
        name => Header::Name(header_name(name)?),
    })
}

fn header_name(name: &str) -> Result<HeaderName, Problem> {
    HeaderName::try_from(name).map_err(|_| Problem::Argument(format!("`{name}` is no header name")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_text(format: &str) -> Result<Template, FormatError> {
        parse(format, &Place::default())
    }

    #[test]
    fn splits_literals_operators_and_percent_signs() {
        let pieces = parse_text("a %PROTOCOL% 100%% %REQ(X-A?:PATH):7%").unwrap();
        assert_eq!(
            pieces,
            vec![
                Piece::Literal("a ".into()),
                Piece::Operator(Operator { field: Field::Protocol, max: None }),
                Piece::Literal(" 100% ".into()),
                Piece::Operator(Operator {
                    field: Field::Request(Header::Name(HeaderName::from_static("x-a")), Some(Header::Path)),
                    max: Some(7),
                }),
            ]
        );
    }

    #[test]
    fn a_strftime_form_keeps_its_percent_signs() {
        let pieces = parse_text("%START_TIME(%Y/%m/%d %3f)%!").unwrap();
        assert_eq!(
            pieces[0],
            Piece::Operator(Operator { field: Field::StartTime(Some("%Y/%m/%d %3f".into())), max: None })
        );
    }

    #[test]
    fn an_unknown_operator_is_named_with_its_position() {
        let error = parse_text("é %PROTOCOL% %UPSTREAM_HOSTS%").unwrap_err();
        assert_eq!(error.to_string(), "unknown operator %UPSTREAM_HOSTS% at character 14");
        let error = parse("%NOPE%", &Place(Some("k".into()))).unwrap_err();
        assert_eq!(error.to_string(), "unknown operator %NOPE% at character 1 of the value of `k`");
    }

    #[test]
    fn broken_operators_are_refused() {
        for format in ["%", "%PROTOCOL", "50% off", "%REQ(x%", "%REQ(x):5", "%START_TIME(%Y%"] {
            assert!(matches!(parse_text(format), Err(FormatError::Unfinished { .. })), "{format}");
        }
        for format in ["%REQ%", "%REQ()%", "%REQ(a b)%", "%REQ(x):many%", "%PROTOCOL(x)%", "%START_TIME(%!)%"] {
            assert!(matches!(parse_text(format), Err(FormatError::Argument { .. })), "{format}");
        }
    }

    #[test]
    fn operators_without_a_value_here_are_known() {
        let format = "%DYNAMIC_METADATA(istio.mixer:status)% %PROTOCOL% 5%% %UPSTREAM_TLS_VERSION%";
        assert_eq!(absent(format), ["DYNAMIC_METADATA", "UPSTREAM_TLS_VERSION"]);
        assert!(parse_text(format).is_ok());
    }
}
