"""WebDAV by WsgiDAV: a directory that anybody may read and write."""

import told
from wsgidav.wsgidav_app import WsgiDAVApp

share = told.DATA / 'share'
share.mkdir(exist_ok=True)

app = WsgiDAVApp(
    {
        'provider_mapping': {'/': {'root': str(share), 'readonly': False}},
        'simple_dc': {'user_mapping': {'*': True}},
        'property_manager': True,
        'lock_storage': True,
        'verbose': 1,
        'logging': {'enable': False},
    }
)
