# ruff: noqa: E501 - a table; its rows are as long as paths and digests are
"""Public trace sets that `testbed traces get` knows: where each file is, its SHA-256, licence and what to cite.

Every file is pinned to a commit. The digests were taken from verified copies of exactly these files (their git blob
ids agreed with the commit's); a file that does not match is not kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import quote

HOST = "https://raw.githubusercontent.com"


@dataclass(frozen=True)
class PublicFile:
    """One file: its name in our folder, its path in the repository, the digest of its bytes."""

    name: str
    repository: str
    commit: str
    path: str
    sha256: str

    def url(self, host: str = HOST) -> str:
        """Where to get it."""
        return f"{host.rstrip('/')}/{self.repository}/{self.commit}/{quote(self.path)}"


@dataclass(frozen=True)
class PublicSet:
    """A set of traces: about, licence as its repository states it, citation, files."""

    name: str
    about: str
    licence: str
    citation: str
    files: tuple[PublicFile, ...]


def _files(repository: str, commit: str, table: str) -> tuple[PublicFile, ...]:
    """Rows of `sha256 path name`; the name may be left out where it is the last part of the path."""
    rows = [line.split() for line in table.strip().splitlines()]
    return tuple(
        PublicFile(row[2] if len(row) > 2 else row[1].rpartition("/")[2], repository, commit, row[1], row[0]) for row in rows
    )


SETS: dict[str, PublicSet] = {
    "mahimahi": PublicSet(
        "mahimahi",
        "link capacity of US cellular networks, up and down, Mahimahi format",
        "GPL-3.0 (repository)",
        "Winstein, Sivaraman, Balakrishnan: Stochastic Forecasts Achieve High Throughput and Low Delay over Cellular Networks, NSDI 2013",
        _files("ravinet/mahimahi", "ae477d437615b972217498ba52be07db17a15618", """
73c58f41bf7a3f0fac82810ca61307521be1cf6b77a0e98093fd340bddfd161f traces/ATT-LTE-driving.down
d58a640b9bccd131a421bff6eaf727aba324d9258b35009655bbf68e087b9b29 traces/ATT-LTE-driving.up
d48ff134fc29c36cc3c3dee203464246bd698f0faede42534a27b0cbe3057055 traces/TMobile-LTE-driving.down
c97a74e7e6cf593d93b59f73db614bc6186bef510531636ad9961a3b9fc18024 traces/TMobile-UMTS-driving.down
f2dc7c8e57f4cf525fefaff2d68c18a9118fd1382ce9c240b1d324a2a60f8a65 traces/TMobile-UMTS-driving.up
c918436fbd6246af134c76585d9395881fdd27203c59a8902b9a7c675b8a8e3e traces/Verizon-LTE-short.down
f6cd9049f58d70f12545772a3482ded085b6d50f06a2f4ff4afcfb6fe7976dcc traces/Verizon-LTE-short.up
"""),
    ),
    "nyc-lte": PublicSet(
        "nyc-lte",
        "LTE downlink capacity in New York City, Mahimahi format",
        "none stated by the repository",
        "Abbasloo, Yen, Chao: Classic Meets Modern, SIGCOMM 2020",
        _files("Soheil-ab/Cellular-Traces-NYC", "ac6717b5f113bf899344e91ffc57e472daf29954", """
dc66eddd1e570ae52e8795d7f8f0367ebf29cf64e6504d0442facca8f05cc138 trace-2925703-home1
9635f7806e64a00788a10c4c5738dcbf313f6f674ae6c86b70ec182c5fa3cc4a trace-3201711-timessquare
"""),
    ),
    "ghent-4g": PublicSet(
        "ghent-4g",
        "4G download throughput in Ghent, by means of transport",
        "none stated by the repository",
        "van der Hooft et al.: HTTP/2-Based Adaptive Streaming of HEVC Video over 4G/LTE Networks, IEEE Communications Letters 2016",
        _files("ali-zeynali/VSE360", "fac598deb9c626f930d44fd1e8ddbce5f6704922", """
1989a8b61129f1179e5e9ef2eef8041bed590aa1349aadbe11797945c4a0c4d3 dataset/bandwidth/4GLTE/1.log.txt report_bicycle_0001.log
1d2cd70ce969d4d4e37ef568761e466c00428451bc0cf04eca3374fbb5958e00 dataset/bandwidth/4GLTE/2.log.txt report_bicycle_0002.log
ec2ad48a90c4f24e6dfc0118ee8ddda6242cae2cba75d778a64409ef177b0181 dataset/bandwidth/4GLTE/3.log.txt report_bus_0001.log
20ac124dd5afad30a096fe37f713e778aa485bdd2bf80c8f272d3af5c8833587 dataset/bandwidth/4GLTE/4.log.txt report_bus_0002.log
a93e6cf7242011272b03e26882976d273f2e5688293d99306b8c25d04bddb999 dataset/bandwidth/4GLTE/6.log.txt report_bus_0010.log
576ae7cdcec42b737d494c49ebcb4ffcdd366a8aac306f11299bb1f048cbe036 dataset/bandwidth/4GLTE/7.log.txt report_car_0001.log
a51ed480dabec9a9b428f88f02c93f2ef6703383473de3c5af188807ade2bcd9 dataset/bandwidth/4GLTE/8.log.txt report_car_0002.log
1a0d718c84be0fad659cb696ab6ef9fc4d246b016ae21d476b804fef993c5f2c dataset/bandwidth/4GLTE/10.log.txt report_foot_0001.log
37ed0f4162f5f9287996a3ed0d47d1345e6e45892650c2c90d502351407205e3 dataset/bandwidth/4GLTE/11.log.txt report_foot_0002.log
dd11b9ecbb8fa132422fdf0b83d6cec1eabf6b5e7fb670093019c0e2aa31e36c dataset/bandwidth/4GLTE/12.log.txt report_foot_0003.log
d7c26b5154c7030afeabd43c5abb3b485ba712e5d59689a6ee440825f3dfbc98 dataset/bandwidth/4GLTE/13.log.txt report_train_0001.log
5c5d48e95566a6f4a97122380ba8f7145c7d7786574b0d7e3416ab4601d2d4b2 dataset/bandwidth/4GLTE/14.log.txt report_train_0002.log
ce04a41ddab8d3ce3af81f92aa978b79700694120e9820fdc79fcd281b255258 dataset/bandwidth/4GLTE/16.log.txt report_tram_0004.log
9e169888b5e480105ee8a3bdf744ebc02163ea416d29aba2e44a4a8fadf61975 dataset/bandwidth/4GLTE/17.log.txt report_tram_0005.log
db7c3ca300ac6797ca09680fb8b773bec55ae2489df23ddf823ea79cfd2c8f0c dataset/bandwidth/4GLTE/18.log.txt report_tram_0006.log
"""),
    ),
    "norway-hsdpa": PublicSet(
        "norway-hsdpa",
        "3G download throughput around Oslo",
        "none stated by the repository; citation asked for",
        "Riiser, Vigmostad, Griwodz, Halvorsen: Commute Path Bandwidth Traces from 3G Networks, MMSys 2013",
        _files("ali-zeynali/VSE360", "fac598deb9c626f930d44fd1e8ddbce5f6704922", """
d547ff31b7cfaf2686445d1266da41f4c9ea554b8a0b587b31d2925d3518fdea dataset/bandwidth/3G/Bus/report.2010-09-28_1407CEST.log.txt bus/report.2010-09-28_1407CEST.log
743ac0da2107e7f030ada73b137f2226c9a6772ea1e6cf83fc5c8b4160c3dcf3 dataset/bandwidth/3G/Bus/report.2010-09-29_0852CEST.log.txt bus/report.2010-09-29_0852CEST.log
94aa4dd1befb9bda3d9064cfefd8109c875ca4437ca9fd34dc9af1b8e59d3907 dataset/bandwidth/3G/Bus/report.2010-09-29_1622CEST.log.txt bus/report.2010-09-29_1622CEST.log
f205c829c3fc1975aa48644470b0edc196e10a2f534552990d3043157ef8f83f dataset/bandwidth/3G/Bus/report.2010-09-29_1628CEST.log.txt bus/report.2010-09-29_1628CEST.log
081f6737d8e1a580113997b476f57b324fb881c13dee745a6cf810eea24612e4 dataset/bandwidth/3G/Bus/report.2010-09-29_1823CEST.log.txt bus/report.2010-09-29_1823CEST.log
a8e3eef0098892141f16f416cc9db21d7e2dbbcc2c1203cf3f3b93e00dd5e610 dataset/bandwidth/3G/Metro/report.2010-09-13_1003CEST.log.txt metro/report.2010-09-13_1003CEST.log
fe5f303227804ab694be606b550dc933986149c16c7b3777913a725f9c818ecb dataset/bandwidth/3G/Metro/report.2010-09-13_1046CEST.log.txt metro/report.2010-09-13_1046CEST.log
fcf2de9e98772370b7e3dcf5c5e9f846173c76e4fabe330007d33e3fa741bd5f dataset/bandwidth/3G/Metro/report.2010-09-14_1038CEST.log.txt metro/report.2010-09-14_1038CEST.log
603e6cc7cb696c4d3a018a3b2e900465795fdfb329d72e9ee28ef81d58844c90 dataset/bandwidth/3G/Metro/report.2010-09-14_1415CEST.log.txt metro/report.2010-09-14_1415CEST.log
f51d2971cf39b68d95c3c56264643e8c5c5740ce7a4d84ef9c71b93ad81f66b7 dataset/bandwidth/3G/Metro/report.2010-09-14_2303CEST.log.txt metro/report.2010-09-14_2303CEST.log
65e339a90c4663c306378b7d3a0ec06d9a0c7be69a619bffa0ecd98b4613cbb6 dataset/bandwidth/3G/Tram/report.2010-11-23_1541CET.log.txt tram/report.2010-11-23_1541CET.log
bd5d8db084a08b118dd9280ce8395cd15a2b446566a9da086f85b8373430e377 dataset/bandwidth/3G/Tram/report.2010-12-09_1244CET.log.txt tram/report.2010-12-09_1244CET.log
665ca0b8b70a15d6a8739e03336dd2951cb1547c34572c3222a8dfd37aa74af5 dataset/bandwidth/3G/Tram/report.2010-12-09_1334CET.log.txt tram/report.2010-12-09_1334CET.log
91f21aa718ab7bd2cfece82a69e5362e41076c5b34f858f7610447114b2dfe4f dataset/bandwidth/3G/Tram/report.2010-12-16_1125CET.log.txt tram/report.2010-12-16_1125CET.log
88058a9e03bb64d597b4befcc7592355c6da1f38413e2f8ba249a1dd49878a32 dataset/bandwidth/3G/Tram/report.2010-12-16_1215CET.log.txt tram/report.2010-12-16_1215CET.log
""")
        + _files("lmhtq/dash_sim", "e4593d825b5a55aa4b1b77d452eca3aacb8735c5", """
83e2cc5cec70c1c90334ce6d3ce3bd331741efa761d3bec058eea2ec5d447646 throughput/report.2011-02-14_2051CET.log car/report.2011-02-14_2051CET.log
ca615a932e38702369b4c534fb0c0de58676aaa3162c7b71981de429fbd9cdf8 throughput/report.2011-02-14_2139CET.log car/report.2011-02-14_2139CET.log
08350bddbfc32f9125777b1bcab687313201a214a6bbf885ea5ae28c9febf6b7 throughput/report.2010-09-23_1001CEST.log ferry/report.2010-09-23_1001CEST.log
839b1c771a008261e9ff49276e3e859aa9265e8eb02cb63a77ee5c6487648c0c throughput/report.2011-02-01_0629CET.log ferry/report.2011-02-01_0629CET.log
"""),
    ),
    "sabre-json": PublicSet(
        "sabre-json",
        "Ghent 4G and Norway 3G as JSON periods",
        "BSD-2-Clause (repository)",
        "Spiteri, Sitaraman, Sparacio: From Theory to Practice: Improving Bitrate Adaptation in the DASH Reference Player, MMSys 2018",
        _files("UMass-LIDS/sabre", "09b03bb0f4f90660a2504a6b2fb48d2f06333706", """
f0b68ae8ae8c5bb1c27ea3a1944b9fd5ec8b1daa0bf7dc8f929c7e588523ae90 example/mmsys18/3Glogs/report.2010-09-13_1003CEST.json 3Glogs/report.2010-09-13_1003CEST.json
66e8b6f3c96df369570b44f7de11b76407cc2492fae227c6cf648563780ee37b example/mmsys18/3Glogs/report.2010-09-28_1407CEST.json 3Glogs/report.2010-09-28_1407CEST.json
b60d5e706d439611c325c6c15cc41846fb0c8fd347d3db3159b9a129d8dc6261 example/mmsys18/3Glogs/report.2011-02-14_2051CET.json 3Glogs/report.2011-02-14_2051CET.json
73ac6ad07ae7fa633709d77c3c6b833523374997c3e27668cf5167eb3718729d example/mmsys18/4Glogs/report_bicycle_0001.json 4Glogs/report_bicycle_0001.json
00f96244f464bb9ea5b1ea19c8a790ed516d01f29746d15321491b92cd58cd6b example/mmsys18/4Glogs/report_bus_0001.json 4Glogs/report_bus_0001.json
ee7a7164f7b98b4267d75d2b4aa83230e7d439c34466c9dee55176f6fb560b6b example/mmsys18/4Glogs/report_bus_0002.json 4Glogs/report_bus_0002.json
1705b25eeffa14b62a5df37b16e97942b0d3369b6ce33d052419b3023c2f80a8 example/mmsys18/4Glogs/report_car_0001.json 4Glogs/report_car_0001.json
87569c59ef65489c859ff7fb3db4c2c7cddea8a099582e569fec688cab2e34f2 example/mmsys18/4Glogs/report_foot_0001.json 4Glogs/report_foot_0001.json
c9f669f7433b16a72e0da6c1d8001b5d39fac168b0f8dd9474431824abb7c60c example/mmsys18/4Glogs/report_train_0001.json 4Glogs/report_train_0001.json
e399c8dd62281900c4517a1ef1725b84e5af501a51a86bd4621f44f10e25134e example/mmsys18/4Glogs/report_tram_0004.json 4Glogs/report_tram_0004.json
c3fff83646532ec17084184912f6897799bab4446da84b8ca7f6138799900806 example/network.json
"""),
    ),
    "pensieve-cooked": PublicSet(
        "pensieve-cooked",
        "FCC, Norway, Oboe and Puffer as seconds and Mbit/s",
        "MIT (repository; the measurements are others')",
        "Mao, Netravali, Alizadeh: Neural Adaptive Video Streaming with Pensieve, SIGCOMM 2017",
        _files("confiwent/Real-world-bandwidth-traces", "d28c4fd48d0e358db024cc0217b111c070815fa7", """
02a354054981da7f80df8eee49d7730fda2e34679c348b705bcb2fb4d24d053f fcc_ori/cooked_traces/trace_10730_http---www.facebook.com fcc/trace_10730_http---www.facebook.com
4dd3c24d94d71958fea9ced00da7e9057d863aba52433739356a5e508bbda2e7 fcc_ori/cooked_traces/trace_28838_http---www.amazon.com fcc/trace_28838_http---www.amazon.com
49666e2f50053268864fed9a22a5134517ec57fb89420598300aa24b40d2bc71 fcc_ori/cooked_traces/trace_397686_http---www.facebook.com fcc/trace_397686_http---www.facebook.com
17aec68692875a0752e181460fe75d8ef3935b259ffdfa54bb9b4a1513017b87 fcc_ori/cooked_traces/trace_5642_http---www.youtube.com fcc/trace_5642_http---www.youtube.com
3db3c0a577affc5ea5dbaa5a2dbb98cce7a1627b4f4e38e04c3d431e25afcd82 fcc_ori/cooked_traces/trace_665208_http---www.yahoo.com fcc/trace_665208_http---www.yahoo.com
1edb515156fd51f624fedaec93e8ac9ecfe6f6f511f88a5c5aa4b6e80afc80b3 cooked_3gp/norway_bus_11 norway-3g/norway_bus_11
d22b0700bd418e0504f9f946795a707a531c64e077326d08a71d3f63ad4ea84f cooked_3gp/norway_car_6 norway-3g/norway_car_6
e57f2df7055cbfe1fd7b63cb04fdfc867b672922aaa21a316947cfc0c84952f7 cooked_3gp/norway_ferry_20 norway-3g/norway_ferry_20
09382063b35c3c7ca3aadc0e86b0ed2a4114c2153ec11e4410db8e3693f65579 cooked_3gp/norway_tram_26 norway-3g/norway_tram_26
fa853aae4efcd429fd4923096372d8ec50f653906cd1c515526bf0a66a9984f1 traces_oboe/oboe_trace_121.txt oboe/oboe_trace_121.txt
1c1c877d09bab17728ad2d83fc0570e4e6a5cf553a3caaf20a800e0b90be62fc traces_oboe/oboe_trace_205.txt oboe/oboe_trace_205.txt
81863a2d856139032037b6f8404868adfa0af7e961fcce65ee4d31af7262566f traces_oboe/oboe_trace_271.txt oboe/oboe_trace_271.txt
21b81f127497502655bbe490b171329c592bb50f363b2e8f6f2e6f4fb017033e traces_oboe/oboe_trace_410.txt oboe/oboe_trace_410.txt
24f6f68f8b3c91416e8dcaa5a361af1635245c86455d9b3a5f9bafd2f32a9483 traces_oboe/oboe_trace_48.txt oboe/oboe_trace_48.txt
95726a7455a935907966a06ef1c62f31001bf6824d4ffedb7d4bba6b5a7fe929 puffer_220218/cooked_traces/traceCFypkK9CN74n22wTvGX-x+JYd2C0QxwFfqSr5EDEYd8=_23 puffer/traceCFypkK9CN74n22wTvGX-x+JYd2C0QxwFfqSr5EDEYd8=_23
d7b6e2477e4ad59d53244e8d570ca00b29b44b4288710d0e0266bd75a7d21ceb puffer_220218/cooked_traces/traceFrty0Rpx5mZGwuL49te0WcGyNj+RMIxfoU71aaxy5yU=_8 puffer/traceFrty0Rpx5mZGwuL49te0WcGyNj+RMIxfoU71aaxy5yU=_8
abeaf8653b206aa125484d0bcfe9874dbeab5c48884a10dc81c1f74a8098f595 puffer_220218/cooked_traces/traceSeb4I3fL6FZLOPnkfE7sbmAMuZ5IuJ3oQEgog5oyJCc=_4 puffer/traceSeb4I3fL6FZLOPnkfE7sbmAMuZ5IuJ3oQEgog5oyJCc=_4
"""),
    ),
    "lumos5g": PublicSet(
        "lumos5g",
        "4G and mmWave 5G downlink throughput, walking and driving",
        "none stated by the repository for the data",
        "Narayanan et al.: A Variegated Look at 5G in the Wild, SIGCOMM 2021; Lumos5G, IMC 2020",
        _files("SIGCOMM21-5G/artifact", "35aaf2857550c7f4c736fe9b01e894253a777e4e", """
c15620e3032f8181ed63f5bab9ec25a4936a304b857978cdda1c76e6d0e52279 Video-Streaming/Network-Traces/Lumous5G/4G/4g_trace_driving_50217_dr 4G/4g_trace_driving_50217_dr
40da61a74140e2a75271795fe361a54f0f4ba02f8b727ac6d6b5606549efbf0e Video-Streaming/Network-Traces/Lumous5G/4G/4g_trace_driving_60045_dr 4G/4g_trace_driving_60045_dr
0a329a169aeeb43996918d2d2f98ae4cd27fd74b81f9292b11ad4f1870127711 Video-Streaming/Network-Traces/Lumous5G/4G/4g_trace_walking_50035_a 4G/4g_trace_walking_50035_a
6e1b6b74dae6da1833ebd29e3f3a4d9d2e54396073ba8fd24eca2e1a3e4ae1bf Video-Streaming/Network-Traces/Lumous5G/4G/4g_trace_walking_50073_a 4G/4g_trace_walking_50073_a
662a9ead7898f10da739ff2c5662d6214015cec602796ad3474c56cc72214cc9 Video-Streaming/Network-Traces/Lumous5G/4G/4g_trace_walking_50135_c 4G/4g_trace_walking_50135_c
6e1dcad4d0113557e865cd486f50b0a6c5322cc1867e122c5f86eb7e4f20ccc3 Video-Streaming/Network-Traces/Lumous5G/4G/4g_trace_walking_50198_c 4G/4g_trace_walking_50198_c
729052cb286bcb2f2e46874ea7a9a8ec17c82d9fc0615b705b1ae4bde0cc58ff Video-Streaming/Network-Traces/Lumous5G/4G/4g_trace_walking_60034_c 4G/4g_trace_walking_60034_c
5851aa9a6d502786404ff352a180dce58482654ab67e9a536de9521af4d76600 Video-Streaming/Network-Traces/Lumous5G/4G/4g_trace_walking_60049_a 4G/4g_trace_walking_60049_a
4d37db1ca90625fe12b0b9755668a1c1bdd94544b06c891c59a5999ab616e461 Video-Streaming/Network-Traces/Lumous5G/5G/5g_trace_110_driving 5G/5g_trace_110_driving
73b3c031a5d02c0c91b16786784309fe3c80b90d7240bc29b4e0d2de76cebbcd Video-Streaming/Network-Traces/Lumous5G/5G/5g_trace_121_walking 5G/5g_trace_121_walking
01c27be48bcba8605d50834bdca8c9332be236600228cd42c06cae37ea9a1091 Video-Streaming/Network-Traces/Lumous5G/5G/5g_trace_22_driving 5G/5g_trace_22_driving
a2ffde122b121a4eee07714cd028de0f483246395b269201316a360ddc4a60d0 Video-Streaming/Network-Traces/Lumous5G/5G/5g_trace_33_walking 5G/5g_trace_33_walking
ffb697f2bfa4cc6a29aff0aa8da69faf74e995833129266be7d7d17fda8d9d54 Video-Streaming/Network-Traces/Lumous5G/5G/5g_trace_44_walking 5G/5g_trace_44_walking
7de31c41f58e0725d5271d4de7484e00ce1525ef591e34329d06963c34e63a9f Video-Streaming/Network-Traces/Lumous5G/5G/5g_trace_55_walking 5G/5g_trace_55_walking
17aef1e14332d486b765e9f1a17f599b918c050a34719fea36cc0a9b56481d5d Video-Streaming/Network-Traces/Lumous5G/5G/5g_trace_66_driving 5G/5g_trace_66_driving
2f2979b2a545fcce4df534946b58ad7ab39b172051bdb66c64b721ca6097e865 Video-Streaming/Network-Traces/Lumous5G/5G/5g_trace_77_driving 5G/5g_trace_77_driving
63e6b92c895a986921e06cdf1a2d4145a0ebc5cfc1fcca3dff3272ea8ed44b62 Video-Streaming/Network-Traces/Lumous5G/5G/5g_trace_88_driving 5G/5g_trace_88_driving
59cac982a9bbbc9bcf1485513489dd6df5fdfa5a4c3ad6da1c45c0ed691a05de Video-Streaming/Network-Traces/Lumous5G/5G/5g_trace_9_walking 5G/5g_trace_9_walking
"""),
    ),
    "5gophers": PublicSet(
        "5gophers",
        "first commercial 5G in the US, three carriers, and round-trip times",
        "CC BY 4.0 (data)",
        "Narayanan et al.: A First Look at Commercial 5G Performance on Smartphones, WWW 2020",
        _files("jhzuo/Offloading-FL", "7133b70d7dd75e9234e26d9df3b4896f52a0ea4b", """
d6b3beee12ac51cbb067fe28b473aa65ddd7661ef9bcfe15ef16d57d0a9aa9a4 trace_data/5Gophers-v1.0/All-Carriers/01-Throughput/data.csv All-Carriers/01-Throughput/data.csv
5584a28e3ca45cea599ee892be6b52a8e162629e4757fada134a9854b50b18dc trace_data/5Gophers-v1.0/All-Carriers/02-Round-Trip-Times/data.csv All-Carriers/02-Round-Trip-Times/data.csv
497bbf3c379d08501fb121c0125ba3008c93ec620e6706440d38490f402230ce trace_data/5Gophers-v1.0/All-Carriers/03-User-Mobility/car-driving-trace-1.csv All-Carriers/03-User-Mobility/car-driving-trace-1.csv
f55c99babfccffdd852f71b30ca83364e26bdc900554b6f3c717e0799baf662b trace_data/5Gophers-v1.0/All-Carriers/03-User-Mobility/car-driving-trace-2.csv All-Carriers/03-User-Mobility/car-driving-trace-2.csv
0311ebd1f84e7f1c4860becc9e30f8a8005dda4bf024aa43d485f60aa37cdf13 trace_data/5Gophers-v1.0/All-Carriers/03-User-Mobility/walking-trace.csv All-Carriers/03-User-Mobility/walking-trace.csv
"""),
    ),
    "opennetlab-json": PublicSet(
        "opennetlab-json",
        "short uplink captures, some with outliers that need --clip",
        "none stated by the repository",
        "OpenNetLab AlphaRTC gym",
        _files("OpenNetLab/gym", "8a21e6bb45e9f993741ae3089e9cc9b7c9c90c55", """
fe983a13aefa93bad2c2c8a61e275a4fe7d611cf59636e0ec7540c26e5cf5304 alphartc_gym/tests/data/4G_3mbps.json
e3fbb520a47edf6f02c61c412b474fcffc683123de13e86e5c3bfeac6407664e alphartc_gym/tests/data/4G_500kbps.json
800bf092f9592c0eebf1ada6aea49c00dd02b195530b57bed847cb8c4713fd37 alphartc_gym/tests/data/4G_700kbps.json
4d034f0266d61439f018bdc0b05ac750a1845be842ecb58d000cf002039730fd alphartc_gym/tests/data/5G_12mbps.json
e4361e139c9948bf98e9bb968e9c198ddfd61338849fe4e76356480afbb91ab7 alphartc_gym/tests/data/5G_13mbps.json
1e1894642c8921f47f8e6f03a86fa13b30268143e2ae5dda00a1f62132f1f5af alphartc_gym/tests/data/loss/trace_loss_pattern_4.json synthetic/trace_loss_pattern_4.json
7e49c095f8e7e4fcc1073a1e824590e6ee1e6940b66640a0d7f8d2baff1916ad alphartc_gym/tests/data/rtt/trace_rtt_pattern_4.json synthetic/trace_rtt_pattern_4.json
"""),
    ),
}
