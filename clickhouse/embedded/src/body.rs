//! The body of a request, as the thread that runs the query reads it: pieces from the network, decompressed.

use std::io::{self, BufReader, Read};

use bytes::{Buf, Bytes};
use tokio::sync::mpsc;

use crate::blocks::BlockReader;
use crate::exception::Exception;
use crate::lz4_frames::Lz4Frames;

/// What the network side sends to the thread.
pub(crate) enum Piece {
    /// Bytes of the body.
    Data(Bytes),
    /// The body is complete. Without this, the client went away.
    End,
}

/// Reads the pieces of a body. Fails if the body did not come to its end.
pub(crate) struct BodyReader {
    pieces: mpsc::Receiver<Piece>,
    current: Bytes,
    ended: bool,
}

impl BodyReader {
    pub(crate) fn new(pieces: mpsc::Receiver<Piece>) -> Self {
        Self { pieces, current: Bytes::new(), ended: false }
    }
}

impl Read for BodyReader {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() && !self.ended {
            match self.pieces.blocking_recv() {
                Some(Piece::Data(data)) => self.current = data,
                Some(Piece::End) => self.ended = true,
                None => {
                    return Err(io::Error::other(Exception::network(
                        "the client closed the connection before the request's body was complete",
                    )));
                }
            }
        }
        let length = self.current.len().min(out.len());
        if let Some(place) = out.get_mut(..length) {
            self.current.copy_to_slice(place);
        }
        Ok(length)
    }
}

/// How a body is compressed as a whole (`Content-Encoding`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Encoding {
    Identity,
    Gzip,
    Deflate,
    Zstd,
    Lz4,
}

impl Encoding {
    /// Reads a `Content-Encoding`.
    ///
    /// # Errors
    /// Code 89 for one that is not supported.
    pub(crate) fn of_request(name: &str) -> Result<Self, Exception> {
        match name.trim().to_ascii_lowercase().as_str() {
            "" | "identity" => Ok(Self::Identity),
            "gzip" | "x-gzip" => Ok(Self::Gzip),
            "deflate" => Ok(Self::Deflate),
            "zstd" => Ok(Self::Zstd),
            "lz4" => Ok(Self::Lz4),
            other => Err(Exception::unknown_compression(format_args!(
                "Unknown compression method {other} in Content-Encoding (gzip, deflate, zstd and lz4 are supported)"
            ))),
        }
    }

    /// Chooses what to answer with from an `Accept-Encoding`; what comes first among the names known here.
    pub(crate) fn of_response(accepted: &str) -> Self {
        let mut names = accepted.split(',').filter_map(|entry| {
            let (name, parameters) = entry.split_once(';').unwrap_or((entry, ""));
            let refused = parameters.split_once("q=").is_some_and(|(_, q)| q.trim().parse() == Ok(0.0_f32));
            (!refused).then(|| name.trim().to_ascii_lowercase())
        });
        names
            .find_map(|name| match name.as_str() {
                "gzip" => Some(Self::Gzip),
                "deflate" => Some(Self::Deflate),
                "zstd" => Some(Self::Zstd),
                "lz4" => Some(Self::Lz4),
                _ => None,
            })
            .unwrap_or(Self::Identity)
    }

    /// The name for a `Content-Encoding`, if there is one to state.
    pub(crate) fn header(self) -> Option<&'static str> {
        match self {
            Self::Identity => None,
            Self::Gzip => Some("gzip"),
            Self::Deflate => Some("deflate"),
            Self::Zstd => Some("zstd"),
            Self::Lz4 => Some("lz4"),
        }
    }
}

/// The reader of a body that is compressed by `encoding`, and within that, if `blocks`, in ClickHouse's own blocks.
///
/// # Errors
/// If a decoder cannot be made. Reading gives errors that hold an [`Exception`] where the body is to blame.
pub(crate) fn decoded<'a>(body: impl Read + 'a, encoding: Encoding, blocks: bool) -> io::Result<Box<dyn Read + 'a>> {
    let plain: Box<dyn Read + 'a> = match encoding {
        Encoding::Identity => Box::new(body),
        Encoding::Gzip => Box::new(flate2::read::MultiGzDecoder::new(body)),
        Encoding::Deflate => Box::new(flate2::read::ZlibDecoder::new(body)),
        Encoding::Zstd => Box::new(zstd::stream::read::Decoder::with_buffer(BufReader::new(body))?),
        Encoding::Lz4 => Box::new(Lz4Frames::new(body)),
    };
    Ok(if blocks { Box::new(BlockReader::new(plain)) } else { plain })
}

/// The exception in an error of a reader made by [`decoded`].
pub(crate) fn exception_of(error: io::Error) -> Exception {
    match error.downcast::<Exception>() {
        Ok(exception) => exception,
        Err(error) => {
            Exception::cannot_decompress(format_args!("cannot read the request's body as its encoding says: {error}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn packed(encoding: Encoding, data: &[u8]) -> Vec<u8> {
        match encoding {
            Encoding::Identity => data.to_vec(),
            Encoding::Gzip => {
                let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                out.write_all(data).unwrap();
                out.finish().unwrap()
            }
            Encoding::Deflate => {
                let mut out = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
                out.write_all(data).unwrap();
                out.finish().unwrap()
            }
            Encoding::Zstd => zstd::encode_all(data, 1).unwrap(),
            Encoding::Lz4 => {
                let mut out = lz4_flex::frame::FrameEncoder::new(Vec::new());
                out.write_all(data).unwrap();
                out.finish().unwrap()
            }
        }
    }

    #[test]
    fn every_encoding_is_read_and_every_cut_is_an_error() {
        let data: Vec<u8> = (0..20_000_u32).flat_map(u32::to_le_bytes).collect();
        for encoding in [Encoding::Gzip, Encoding::Deflate, Encoding::Zstd, Encoding::Lz4] {
            let whole = packed(encoding, &data);
            let mut out = Vec::new();
            decoded(whole.as_slice(), encoding, false).unwrap().read_to_end(&mut out).unwrap();
            assert_eq!(out, data, "{encoding:?}");
            for cut in [1, whole.len() / 2, whole.len() - 1] {
                let mut out = Vec::new();
                let read = decoded(&whole[..cut], encoding, false).unwrap().read_to_end(&mut out);
                assert!(read.is_err(), "{encoding:?} cut at {cut} gave {} bytes", out.len());
            }
        }
    }

    #[test]
    fn a_body_without_its_end_is_an_error() {
        let (sender, pieces) = mpsc::channel(2);
        sender.try_send(Piece::Data(Bytes::from_static(b"abc"))).ok().unwrap();
        drop(sender);
        let mut out = Vec::new();
        let error = BodyReader::new(pieces).read_to_end(&mut out).unwrap_err();
        assert_eq!(exception_of(error).code(), 210);
    }

    #[test]
    fn the_first_known_encoding_is_chosen() {
        assert_eq!(Encoding::of_response("br, gzip, zstd"), Encoding::Gzip);
        assert_eq!(Encoding::of_response("zstd;q=1.0, gzip"), Encoding::Zstd);
        assert_eq!(Encoding::of_response("gzip;q=0, deflate"), Encoding::Deflate);
        assert_eq!(Encoding::of_response("br"), Encoding::Identity);
    }
}
