"""Find out quickly whether a server can be reached, before using a client that would retry for half a minute."""

import http.client
import ssl
import threading
import urllib.error
import urllib.request


def why_unreachable(url: str, timeout_s: float = 3.0) -> str | None:
    """Return None if a server answers at `url`, else the reason in a few words, after at most `timeout_s` seconds.

    Proxies are taken from the environment, as other clients do. Any answer counts, also a refusal, except for those
    by which a proxy or server reports its own failure (407 and 5xx).
    """
    reasons: list[str | None] = []

    def probe() -> None:
        try:
            request = urllib.request.Request(url, method="HEAD", headers={"User-Agent": "rnn-words"})
            # A new opener, since the one behind urlopen() keeps the proxies that it saw first.
            with urllib.request.build_opener().open(request, timeout=timeout_s):
                reasons.append(None)
        except urllib.error.HTTPError as error:
            failed = error.code == 407 or error.code >= 500
            reasons.append(f"HTTP {error.code}" if failed else None)
            error.close()
        except urllib.error.URLError as error:
            # An untrusted certificate is an answer too: the real client may have other certificates.
            trust = isinstance(error.reason, ssl.SSLError)
            reasons.append(None if trust else getattr(error.reason, "strerror", None) or str(error.reason))
        except (OSError, http.client.HTTPException, ValueError) as error:
            reasons.append(str(error) or type(error).__name__)

    # In a thread, since no timeout bounds the name look-up: it takes half a minute if a firewall drops its packets.
    thread = threading.Thread(target=probe, name="network-probe", daemon=True)
    thread.start()
    thread.join(timeout_s)
    return reasons[0] if reasons else f"no answer within {timeout_s:g} s"
