"""What the errors of Entra ID mean here ("Microsoft Entra authentication and authorization error codes",
learn.microsoft.com). Each has a code of its own in listener/ews/codes.py and docs/TROUBLE.md."""

from __future__ import annotations

from collections.abc import Mapping

MEANINGS: Mapping[str, str] = {
    "AADSTS50013": "the assertion is not signed as it should be: is the certificate that of {client}?",
    "AADSTS50027": "the assertion is malformed, or made out to somebody else",
    "AADSTS50053": "{client} is locked after too many tries with wrong credentials: it opens by itself after a while",
    "AADSTS53003": "a Conditional Access policy keeps {client} out",
    "AADSTS70021": "no federated identity of {client} has the issuer, subject and audience of this federated token",
    "AADSTS90002": "there is no tenant {tenant}: check tenant and cloud",
    "AADSTS500011": "the tenant {tenant} has no resource {resource}: check scope and cloud",
    "AADSTS700016": "the tenant {tenant} knows no application {client}: check client_id, tenant and cloud",
    "AADSTS700024": "the assertion is not within its time: is our clock right, or has the federated token expired?",
    "AADSTS700027": "the certificate is not registered for {client}, or its key is another one",
    "AADSTS700211": "no federated identity of {client} has the issuer of this federated token",
    "AADSTS700212": "no federated identity of {client} has the audience of this federated token",
    "AADSTS700213": "no federated identity of {client} has the subject of this federated token",
    "AADSTS900023": "{tenant} is neither the id nor the domain of a tenant",
    "AADSTS1002012": "the scope must be a resource with /.default at its end",
    "AADSTS7000112": "the application {client} is disabled in the tenant {tenant}",
    "AADSTS7000215": "the client secret of {client} is wrong: the secret's value is wanted, not its id",
    "AADSTS7000218": "{client} must come with a secret or with an assertion",
    "AADSTS7000222": "the client secret of {client} has expired: make a new one in the application's registration",
    "AADSTS7000229": "the application {client} has no service principal in the tenant {tenant}: grant it consent",
}
