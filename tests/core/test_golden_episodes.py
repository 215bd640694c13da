"""The first 20 episodes of every bundled protocol, frozen.

A digest that differs means that published scores no longer compare: the protocol (or the dataset)
needs a new version.
"""

from __future__ import annotations

import pytest

from medbench.episodes import digest
from medbench.opened import default_place
from medbench.plugins import registry
from medbench.protocols import load_protocol
from medbench.tasks import resolve

OFFLINE = ("synthetic-classes", "synthetic-cross", "synthetic-sites", "synthetic-findings",
           "synthetic-segmentation", "synthetic-detection", "synthetic-volumes",
           "synthetic-modalities", "synthetic-patients", "synthetic-patients-others",
           "synthetic-sites-masks", "synthetic-sites-boxes", "synthetic-volume-masks")  # fmt: skip
REAL = ("omniglot-5w1s", "omniglot-5w5s", "omniglot-20w1s", "omniglot-20w5s", "medmnist-cross",
        "wbc-sites", "nuclei-segmentation", "bccd-detection", "medmnist3d-cross",
        "chest-sites", "chest-views", "chest-patients")  # fmt: skip
# Their data are not to be had by every developer, so nobody could notice a change.
UNSEEN = ("medmnist-findings",)


def digests(name):
    protocol, _ = load_protocol(registry(), name)
    targets = resolve(registry(), protocol, default_place(), non_commercial=True).targets
    return {t.episode_key: digest(t.pool.draw(t.shape, t.episode_key, 0, 20)) for t in targets}


def test_every_bundled_protocol_has_golden_digests():
    assert set(registry().entries["protocols"]) == {*OFFLINE, *REAL, *UNSEEN}


@pytest.mark.parametrize("name", OFFLINE)
def test_offline_episodes_are_frozen(name):
    found = digests(name)
    assert found == {k: v for k, v in GOLDEN.items() if k.startswith(f"{name}-v")}


@pytest.mark.data
@pytest.mark.parametrize("name", REAL)
def test_episodes_of_real_data_are_frozen(name):
    # Which optional datasets are here differs; the episodes of those that are must not.
    found = digests(name)
    known = {k: v for k, v in found.items() if k in GOLDEN}
    assert known
    assert known == {k: GOLDEN[k] for k in known}


GOLDEN = {
    "chest-views-v1/csv:chest_sites/index.csv@Germany:2w1s": "c0346c5c3731c9b1ac37ae877b28de13",
    "chest-views-v1/csv:chest_sites/index.csv@United Kingdom:2w1s": "7452d0efb559d217c3bc0ed6531e40ae",  # noqa: E501
    "synthetic-modalities-v1/synthetic-scans:4w1s": "ca96e2cbc69523e28fd17f3ce1e3405a",
    "synthetic-modalities-v1/synthetic-scans:4w5s": "04ee778b08e59706008f4507dce85d05",
    "synthetic-sites-boxes-v1/synthetic:xray@site A:1w1s": "9f0b3118028d4b21c311365fab3dcc1f",
    "synthetic-sites-boxes-v1/synthetic:xray@site A:1w5s": "31faa4f5f9e143952e949bc770cd74f9",
    "synthetic-sites-boxes-v1/synthetic:xray@site B:1w1s": "7ba596eb61a6cebae02c0bc5ee8edb0b",
    "synthetic-sites-boxes-v1/synthetic:xray@site B:1w5s": "f28d32d503eb2ff8a0989dda500ace7c",
    "chest-patients-v1/boxes:chest_sites/index.csv:1w1s": "eec28c3053b7a4388ffe8a24454b06a6",
    "synthetic-patients-v1/synthetic-patients:5w1s": "109ebedda9dce34ba1de1cb78a250b9a",
    "synthetic-patients-v1/synthetic-patients:5w3s": "50b977ffc25eab9200750baf9fe3e46a",
    "synthetic-patients-others-v1/synthetic-patients:5w1s": "49480a4b38c824db2b7f740750063f75",
    "synthetic-patients-others-v1/synthetic-patients:5w3s": "9bfe72d2d698aea1c9d887523088eef5",
    "synthetic-sites-masks-v1/synthetic:cells@site A:1w1s": "3dbc095be88d68affc97c528fba799f3",
    "synthetic-sites-masks-v1/synthetic:cells@site A:1w5s": "1556e757143912f06959a8a3ae27f05d",
    "synthetic-sites-masks-v1/synthetic:cells@site B:1w1s": "32cc71d24f71649b49ef9e607a7b307b",
    "synthetic-sites-masks-v1/synthetic:cells@site B:1w5s": "41a6aed0bc4ea0362d75e056f455fe37",
    "chest-sites-v1/boxes:chest_sites/index.csv@Australia:1w1s": "56a7b6fbca1b4808938a07ba27f1f193",
    "chest-sites-v1/boxes:chest_sites/index.csv@Australia:1w5s": "2bb7d265fb7e92928eccd42f6e73be85",
    "chest-sites-v1/boxes:chest_sites/index.csv@Germany:1w1s": "f7ce2820be7232a9261412f8e3a81f2b",
    "chest-sites-v1/boxes:chest_sites/index.csv@Germany:1w5s": "13b7f04c34715fc84c5d790454adfc42",
    "chest-sites-v1/boxes:chest_sites/index.csv@Spain:1w1s": "0cb16af859c8eda404c301486b0e99d1",
    "chest-sites-v1/boxes:chest_sites/index.csv@Spain:1w5s": "9e01a2f8531d87b6be14bd5e7424bc6b",
    "chest-sites-v1/boxes:chest_sites/index.csv@United Kingdom:1w1s": "823c51c86dda95cbc4e01a70b140e18c",  # noqa: E501
    "chest-sites-v1/boxes:chest_sites/index.csv@United Kingdom:1w5s": "873b6cfb2d741f15e7700e4e81491b80",  # noqa: E501
    "synthetic-volumes-v1/synthetic-vessels:4w1s": "06d81046e660db89849b0b1ff46a959f",
    "synthetic-volumes-v1/synthetic-vessels:4w5s": "7f8753e87f2b681038af1e6c844317b4",
    "synthetic-volume-masks-v1/synthetic-vessels:1w1s": "19148ca95ac5da94468b59e4ff9893b6",
    "synthetic-volume-masks-v1/synthetic-vessels:1w5s": "f68c1e46021bbe1bb3fbd62d415c995e",
    "medmnist3d-cross-v1/medmnist/adrenal3d:2w1s": "a8f1ebf5a02aec466dd0cc236dfabaf7",
    "medmnist3d-cross-v1/medmnist/adrenal3d:2w5s": "f1640f0463f31477d36067b2fe0ef9f2",
    "medmnist3d-cross-v1/medmnist/adrenal3d:2w10s": "6d638b09f9cdfccf54b557c368389e28",
    "synthetic-classes-v1/synthetic:cells:5w1s": "dcc5234974c523f34a180dccc525decf",
    "synthetic-classes-v1/synthetic:cells:5w5s": "a1116b00b9c3c3e1a2e7c892e766e10b",
    "synthetic-cross-v1/synthetic:cells:5w1s": "fa97487484aa309965072173af2a3aba",
    "synthetic-cross-v1/synthetic:cells:5w5s": "15dc627d3f4c60fe4114c63c71ad64a7",
    "synthetic-cross-v1/synthetic:cells:5w10s": "ff5cb7297d126383f53cf5cad9abfcf1",
    "synthetic-cross-v1/synthetic:fundus:5w1s": "c2e9d787e2216cdafe2157b48bd6d1c5",
    "synthetic-cross-v1/synthetic:fundus:5w5s": "d13db981fde226cf5c71b686ee63cb8f",
    "synthetic-cross-v1/synthetic:fundus:5w10s": "3bfac76ba50e3088eb30e6099abf8ee4",
    "synthetic-cross-v1/synthetic:xray:5w1s": "014582d0aa2d8fc7d6ceff8736377be1",
    "synthetic-cross-v1/synthetic:xray:5w5s": "29311106a78060d161cd4dad40992ae0",
    "synthetic-cross-v1/synthetic:xray:5w10s": "90982cd4dfa871570cf8fc9fcbfacb6e",
    "synthetic-cross-v1/synthetic:ct:5w1s": "c208dc33460760c0089fbd8a9ffbfe98",
    "synthetic-cross-v1/synthetic:ct:5w5s": "1e9debeb72ceeea912843bc0c0f476f2",
    "synthetic-cross-v1/synthetic:ct:5w10s": "02f3e962624ba74d959a447e78b5fe18",
    "synthetic-sites-v1/synthetic:cells@site A:5w1s": "12540a3c28801b97695007aff9240a53",
    "synthetic-sites-v1/synthetic:cells@site A:5w5s": "058412d880898f6498185b1a0aa4aa2c",
    "synthetic-sites-v1/synthetic:cells@site B:5w1s": "bf3825bb1eb279ef8eccdce358802e6a",
    "synthetic-sites-v1/synthetic:cells@site B:5w5s": "a8647219a366f67e77769d017198326c",
    "synthetic-sites-v1/synthetic:cells@site C:5w1s": "d2bb65295a98366c4694a6b29ff3b016",
    "synthetic-sites-v1/synthetic:cells@site C:5w5s": "d2a66354682a4218b9be7171f50e34e0",
    "synthetic-sites-v1/synthetic:cells@site D:5w1s": "de089102543ccac2b545288b5c45e232",
    "synthetic-sites-v1/synthetic:cells@site D:5w5s": "36cf623d73cea73464eb9645d8d02cf1",
    "synthetic-findings-v1/synthetic:xray:11w1s": "8e392571ffc7d1c4c1c20ffb2fd849ef",
    "synthetic-findings-v1/synthetic:xray:11w5s": "2e57a7514c01ce0774eefce9d5a52fb8",
    "omniglot-5w1s-v1/omniglot:5w1s": "9bc590266a6711d4c810c2741056f486",
    "omniglot-5w5s-v1/omniglot:5w5s": "53d2bdd23e36e57d6b2aab19b420eb62",
    "omniglot-20w1s-v1/omniglot:20w1s": "201d947b1f3b27726544d578f5be1cfe",
    "omniglot-20w5s-v1/omniglot:20w5s": "416d8b2705825e3b7777c99e9e7ee9e6",
    "medmnist-cross-v1/medmnist/pneumonia:2w1s": "38bc88ea74e80feb07cfbf7edae19fb6",
    "medmnist-cross-v1/medmnist/pneumonia:2w5s": "f3809d475261aa179d0bf80a8a266b59",
    "medmnist-cross-v1/medmnist/pneumonia:2w10s": "926e386f1c80ae8e58cce3f76456b9ca",
    "medmnist-cross-v1/medmnist/retina:5w1s": "a421a2c930bd2881771073c460f0ed7e",
    "medmnist-cross-v1/medmnist/retina:5w5s": "70ed781002f49b64d80d8f5187c4e2e0",
    "medmnist-cross-v1/medmnist/retina:5w10s": "cd81eb6215e1d389fd4816977725b184",
    "medmnist-cross-v1/medmnist/breast:2w1s": "fdd54e82c9218c720a458de2d77b47e3",
    "medmnist-cross-v1/medmnist/breast:2w5s": "0f31a95d8dfba8e2cf0ec1cdfd8d5100",
    "medmnist-cross-v1/medmnist/breast:2w10s": "0128726b19cbae56621405225d335774",
    "medmnist-cross-v1/npz:pbc28.npz:8w1s": "28e021b087a0f71d776850f29f194459",
    "medmnist-cross-v1/npz:pbc28.npz:8w5s": "8faa66950f4022e5d3608e83823bbb29",
    "medmnist-cross-v1/npz:pbc28.npz:8w10s": "ddbab73ecd41b04c953d9584fe1ccc10",
    "wbc-sites-v1/folder:wbc_sites@cellavision_blog:4w1s": "7ca1caae534d119d9c7db605c370ca48",
    "wbc-sites-v1/folder:wbc_sites@cellavision_blog:4w5s": "cc97f1ab44c8bbc8528e9eb99e1ac3f6",
    "wbc-sites-v1/folder:wbc_sites@pbc_barcelona:4w1s": "48dffe2ac70c8739c44255551d2a24c2",
    "wbc-sites-v1/folder:wbc_sites@pbc_barcelona:4w5s": "07c4cf3e7ac6ba068d362bc5b5353d49",
    "wbc-sites-v1/folder:wbc_sites@tecom_jiangxi:4w1s": "c5e8c0cd6cfbcbef32daa8d91fd5e9f9",
    "wbc-sites-v1/folder:wbc_sites@tecom_jiangxi:4w5s": "5064613817306048b8ce75e7cccc7d6c",
    "synthetic-segmentation-v1/synthetic:cells:1w1s": "8ad5e846a11fac2e9aac4f7ec6a770ba",
    "synthetic-segmentation-v1/synthetic:cells:1w5s": "1f48a4407accf263c414973d4972d4f0",
    "synthetic-segmentation-v1/synthetic:fundus:1w1s": "821a3e39b8a1223466b3d0430251b85d",
    "synthetic-segmentation-v1/synthetic:fundus:1w5s": "8ebff4d42f23b5608e2555a68ba34aa5",
    "synthetic-segmentation-v1/synthetic:ct:1w1s": "a2b6cff6ca8577487153365ded3b07ec",
    "synthetic-segmentation-v1/synthetic:ct:1w5s": "1b94bc5492962a1e07863020e4daf805",
    "nuclei-segmentation-v1/masks:nuclei@colour:1w1s": "95db316c0384ebc30c1270cd354cc46f",
    "nuclei-segmentation-v1/masks:nuclei@colour:1w5s": "a509ee0474796aa1e072328a084f3296",
    "nuclei-segmentation-v1/masks:nuclei@dark_gray:1w1s": "6140fb7756e8662754663504a033330b",
    "nuclei-segmentation-v1/masks:nuclei@dark_gray:1w5s": "46f58079130b9ca3e8ed6b488a1c51b2",
    "synthetic-detection-v1/synthetic:xray:1w1s": "94660ac262bad5347858f81bcbae8534",
    "synthetic-detection-v1/synthetic:xray:1w5s": "d75e0f84c20f80bf18a45c3c84efe7f8",
    "synthetic-detection-v1/synthetic:fundus:1w1s": "a9ee70aaef9afe0ed84f7ef0213dc59a",
    "synthetic-detection-v1/synthetic:fundus:1w5s": "595f0555041236561dc22d27c00c0781",
    "bccd-detection-v1/voc:bccd:3w1s": "9252e9f1c952f288db46a000e196322d",
    "bccd-detection-v1/voc:bccd:3w5s": "87c71f46617de89536da779d66e9a9c0",
}
